"""From what every text cost under every arm to the points of a result, with paired intervals."""

from typing import Any

import numpy as np

from solm.core.actions import AXES
from solm.evaluation.result import Difference, Point, Trials
from solm.evaluation.statistics import expected_best, paired_difference


def points(
    rows: dict[str, np.ndarray], budgets: tuple[float, ...], trials: int, best_of: int, tokens: int, loss: bool = False
) -> list[Point]:
    """The points of all arms, at every one of `budgets` in turn.

    rows: by ``arm@budget`` (``dense`` alone without) [texts, 8] nats per token, κ, ρ, b/16, bytes, flops, milliseconds
    of a step and divergence (nan where not measured). trials: random arms, called ``random/0`` and so on. best_of:
    whole-set trials whose best is estimated. tokens: of all texts. loss: repeat the dense arm at every budget, with the
    policy's difference to it; at a budget of 1 a policy takes dense steps, so that the difference is 0.
    """
    trained = any(name.startswith("policy@") for name in rows)
    found = [_point("dense", 1.0, rows["dense"], tokens, rows["dense"] if loss and trained else None)]
    for budget in budgets:
        policy = rows.get(f"policy@{budget}")
        runs = [rows[f"random/{trial}@{budget}"] for trial in range(trials)]
        names = [name.rpartition("@")[0] for name in rows if name.endswith(f"@{budget}")]
        others = [name for name in names if name != "policy" and not name.startswith("random/")]
        arms: dict[str, Any] = {"dense": rows["dense"]} if loss and policy is not None else {}
        arms |= {name: rows[f"{name}@{budget}"] for name in others}
        if runs:
            arms["random"] = np.mean(runs, axis=0)
            arms[f"best-of-{trials}"] = min(runs, key=lambda trial: trial[:, 0].mean())
        if len(runs) > 1:
            lucky = arms["random"].copy()
            lucky[:, 0] -= expected_best(np.stack([trial[:, 0] for trial in runs]), best_of)
            lucky[:, 7] = np.nan  # of the trials' mean, not of the best
            arms[f"best-of-{best_of}-estimated"] = lucky
        if policy is not None:
            found.append(_point("policy", budget, policy, tokens))
        found += [_point(arm, budget, values, tokens, policy) for arm, values in arms.items()]
    return found


def random_trials(rows: dict[str, np.ndarray], budgets: tuple[float, ...], trials: int) -> list[Trials]:
    """Nats per token of every whole-set random trial, by budget; nothing without trials."""
    if not trials:
        return []
    return [
        Trials(budget=budget, nats=[float(rows[f"random/{trial}@{budget}"][:, 0].mean()) for trial in range(trials)])
        for budget in budgets
    ]


def _point(arm: str, budget: float, rows: np.ndarray, tokens: int, policy: np.ndarray | None = None) -> Point:
    nats, *axes = rows[:, :4].mean(0).tolist()
    spread = paired_difference(rows[:, 0], np.zeros(len(rows)))
    measured = not np.isnan(rows[:, 7]).any()
    difference = apart = None
    if policy is not None:
        difference = Difference(**paired_difference(policy[:, 0], rows[:, 0])._asdict())
        if measured:
            apart = Difference(**paired_difference(policy[:, 7], rows[:, 7])._asdict())
    nominal = sum(axes) / 3
    return Point(
        arm=arm,
        budget=budget,
        realised=nominal,
        axes=dict(zip(AXES, axes, strict=True)),
        cost={"nominal": nominal, "bytes": float(rows[:, 4].mean()), "flops": float(rows[:, 5].mean())},
        step_ms=None if np.isnan(rows[:, 6]).any() else float(rows[:, 6].mean()),
        nats=nats,
        low=spread.low,
        high=spread.high,
        perplexity=float(np.exp(nats)),
        tokens=tokens,
        difference=difference,
        divergence=float(rows[:, 7].mean()) if measured else None,
        divergence_difference=apart,
    )
