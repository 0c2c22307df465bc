"""Any transformers model on any device: training, and exact simulation of every action."""
