"""What graded replies amount to: points with paired differences, in lines and as a picture."""

from typing import Any

import numpy as np

from solm.evaluation.pictures import Kind, blank, picture
from solm.evaluation.result import Record
from solm.evaluation.show import COLOURS
from solm.evaluation.statistics import paired_difference

Rows = dict[str, list[dict[str, Any]]]
"""By arm and budget, such as ``policy@0.85``, and ``dense`` alone, what every problem gave: metrics, steps, spent."""


def points(rows: Rows) -> list[dict[str, Any]]:
    """Dense, then per budget the policy and its baselines.

    Each has the mean of every metric, `spent` per step, the mean length of a reply in `tokens`, the metrics of every
    problem, and `policy_minus`: by metric policy minus this arm with its 95 % interval over problems, of which there
    must be two. That of dense stands at the policy's points.
    """
    dense, found = rows["dense"], []
    for name, made in rows.items():
        arm, _, budget = name.partition("@")
        ours = rows.get(f"policy@{budget}")
        point: dict[str, Any] = {"arm": arm, "budget": float(budget or 1), **_means(made)}
        if ours is not None and len(made) > 1:
            key, theirs = ("policy_minus_dense", dense) if arm == "policy" else ("policy_minus", made)
            point[key] = {
                metric: paired_difference(_values(ours, metric), _values(theirs, metric))._asdict()
                for metric in made[0]["metrics"]
            }
        found.append(point)
    return sorted(found, key=lambda point: -point["budget"])


def _values(made: list[dict[str, Any]], metric: str) -> np.ndarray:
    return np.array([each["metrics"][metric] for each in made])


def _means(made: list[dict[str, Any]]) -> dict[str, Any]:
    metrics, steps = list(made[0]["metrics"]), np.array([each["steps"] for each in made])
    spent = {
        term: float(np.average([each["spent"].get(term, 0.0) for each in made], weights=steps + 1e-9))
        for term in max((each["spent"] for each in made), key=len)
    }
    ended = [each["ended"] for each in made if "ended" in each]
    return {
        **{metric: float(_values(made, metric).mean()) for metric in metrics},
        "spent": spent, "tokens": float(np.mean([each["tokens"] for each in made])),
        **({"ended": float(np.mean(ended))} if ended else {}),
        "by_problem": {metric: _values(made, metric).tolist() for metric in metrics},
    }  # fmt: skip


def lines(found: Record) -> list[str]:
    told = []
    for kind, asked in found.results["kinds"].items():
        for point in asked["points"]:
            spent = point["spent"]
            ms = f", {spent['ms']:.2f} ms per token" if "ms" in spent else f", net keep {spent['net']:.3f}"
            scores = ", ".join(f"{metric} {point[metric]:.3f}" for metric in point["by_problem"])
            minus = point.get("policy_minus", {}).items()
            gain = "".join(f"; policy {d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}] in {m}" for m, d in minus)
            at = "" if point["arm"] == "dense" else f" at {point['budget']:g}"
            told.append(f"{kind} ({asked['problems']}), {point['arm']}{at}: {scores}{ms}{gain}")
    confined = found.results["confined"]
    if confined is not None:
        how = "in namespaces" if confined["isolated"] else "under limits and an audit hook, without namespaces"
        open_to = [name for name, refused in confined.items() if not refused and name != "isolated"]
        told.append(f"code ran {how}" + (f"; not refused: {', '.join(open_to)}" if open_to else ""))
    return told


def plot(found: Record, kind: Kind) -> bytes:
    """Problems solved, or the part of dense replies that an arm says, too, against milliseconds per token, by arm."""
    kinds = found.results["kinds"]
    figure, axes = blank(4.5 * len(kinds), 4, columns=len(kinds))
    for place, (name, asked) in zip(np.atleast_1d(axes), kinds.items(), strict=True):
        dense, *others = asked["points"]
        metric, term = next(iter(dense["by_problem"])), "ms" if "ms" in dense["spent"] else "net"
        for arm in dict.fromkeys(point["arm"] for point in others):
            at = sorted((p["spent"][term], p[metric]) for p in others if p["arm"] == arm)
            place.plot(*zip(*at, strict=True), "o-", label=arm, color=COLOURS[arm])
        place.plot(dense["spent"][term], dense[metric], "D", label="dense", color="#495057")
        place.set_title(f"{name}, {asked['problems']} problems", fontsize=10)
        place.set_xlabel("milliseconds per token" if term == "ms" else "net keep")
        place.set_ylabel(metric)
        place.grid(alpha=0.25)
        place.legend(frameon=False, fontsize=8)
    return picture(figure, kind)
