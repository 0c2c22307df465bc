"""Training policies: allocations, regression on counterfactual schedules, and policy gradient on the same schedules."""
