"""Budgets that need no model to be resolved."""

from solm.core.budget import Budget, BudgetRequest, ResolvedBudget


def resolved(budget: Budget) -> ResolvedBudget:
    """Averages per axis as they are, told in no other unit."""
    return ResolvedBudget(BudgetRequest.parse(budget), budget, {}, budget)
