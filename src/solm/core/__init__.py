"""What everything shares: actions, budgets, costs, how an action is carried out, errors and files."""
