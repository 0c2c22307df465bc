"""Settings of short evaluations."""

from solm.evaluation.perplexity import EvaluationSettings

SHORT = EvaluationSettings(budgets=(0.6, 0.8), texts=5, context=60, length=40, trials=6, batch=2)
