"""The method of arXiv 2605.10875: a policy network trained by GRPO on counterfactual schedules."""
