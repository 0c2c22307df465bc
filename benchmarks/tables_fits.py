"""The tables about policies of `solm fit`: what they lose at equal milliseconds, and what fitting takes."""

from typing import Any

import numpy as np

import published as of
from cells import interval, markdown, signed, table
from published import Difference

_NAMES = {"teal": "thresholds", "upper-bits": "upper bits"}


ARMS = ("policy", "allocated", "teal", "constant", "uniform", "upper-bits")


def _by_budget(points: list[dict[str, Any]]) -> tuple[list[str], list[dict[str, dict[str, Any]]]]:
    """The arms that were measured, and the points of every budget by arm, by rising budget."""
    arms = [arm for arm in ARMS if any(point["arm"] == arm for point in points)]
    budgets = sorted({point["budget"] for point in points if point["arm"] == "policy"})
    return arms, [{point["arm"]: point for point in points if point["budget"] == budget} for budget in budgets]


def fitted_policy(size: str) -> str:
    """What a policy of `solm fit` loses at equal milliseconds, and against what."""
    points = of.read(f"fitted-{size}")["points"]
    dense, (arms, budgets), rows = points[0], _by_budget(points), []
    for found in budgets:
        ours = found["policy"]
        rows.append(
            [f"{ours['budget']:.3f}", f"{ours['step_ms']:.1f}", f"{dense['step_ms'] / ours['step_ms']:.2f}×",
             f"{ours['axes']['attention']:.2f}",
             f"{ours['axes']['mlp']:.2f}", *(signed(found[arm]["nats"] - dense["nats"]) for arm in arms),
             *(interval(Difference.of(found[arm]["difference"])) for arm in arms[1:])]
        )  # fmt: skip
    names = [_NAMES.get(arm, arm) for arm in arms]
    against = (f"policy − {name}" for name in names[1:])
    return markdown(("Share of the dense step's time", "ms", "speed", "pages", "MLP", *names, *against), rows)


def diverged(name: str) -> str:
    """The same by divergence from dense predictions."""
    points = of.read(name)["points"]
    (arms, budgets), rows = _by_budget(points), []
    for found in budgets:
        rows.append(
            [f"{found['policy']['budget']:.3f}", *(f"{found[arm]['divergence']:.4f}" for arm in arms),
             *(interval(Difference.of(found[arm]["divergence_difference"]), 4) for arm in arms[1:])]
        )  # fmt: skip
    names = [_NAMES.get(arm, arm) for arm in arms]
    against = (f"policy − {name}" for name in names[1:])
    return markdown(("Share of the dense step's time", *names, *against), rows)


@table
def fitted() -> str:
    return fitted_policy("0.5b-1024")


@table
def fitted_larger() -> str:
    """The same of a larger model."""
    return fitted_policy("1.5b-1024")


DIVERGED, DIVERGED_LARGER = "fitted-0.5b-1024", "divergences-1.5b-1024"


@table
def fitted_divergences() -> str:
    """How far the policy of the 0.5B and other arms are from dense predictions."""
    return diverged(DIVERGED)


@table
def fitted_divergences_larger() -> str:
    """The same of a larger model."""
    return diverged(DIVERGED_LARGER)


@table
def fitted_smallest() -> str:
    """The same of the smallest model, by a short fit."""
    return fitted_policy("135m")


@table
def fitted_long() -> str:
    """What the policy of the 0.5B loses after long contexts."""
    return fitted_policy("0.5b-8192-zen5")


BITS, LONG_BITS, LARGER_BITS = "fitted-0.5b-bits", "fitted-0.5b-8192-bits", "fitted-1.5b-bits"
CLOCKED_BITS, CLOCKED_LARGER_BITS, INT8_SETTINGS = "budgets-0.5b-bits", "budgets-1.5b-bits", "settings-0.5b-bits"


@table
def fitted_bits() -> str:
    """What a policy that also chooses weight bits loses, on a model in 8 bits."""
    return fitted_policy(BITS.removeprefix("fitted-"))


@table
def fitted_bits_long() -> str:
    """The same after long contexts."""
    return fitted_policy(LONG_BITS.removeprefix("fitted-"))


@table
def fitted_bits_larger() -> str:
    """The same of a larger model."""
    return fitted_policy(LARGER_BITS.removeprefix("fitted-"))


def speed_for_loss(most: float, name: str) -> float:
    """How many times as fast as dense steps the policy of an evaluation is that loses at most so many nats, between its
    budgets as a policy's curve reads them."""
    points = of.read(name)["points"]
    dense = points[0]
    found = sorted((p["step_ms"] / dense["step_ms"], p["nats"] - dense["nats"]) for p in points if p["arm"] == "policy")
    shares, losses = np.array([*found, (1.0, 0.0)]).clip(0).T
    losses = np.maximum.accumulate(losses[::-1])[::-1]
    return 1 / float(np.interp(-most, -losses, shares))


@table
def clocked_bits() -> str:
    """Its steps on the clock, beside dense steps in other precisions."""
    return clocked(CLOCKED_BITS, "nested")


@table
def clocked_bits_larger() -> str:
    """The same of a larger model, whose file is in 8 bits."""
    return clocked(CLOCKED_LARGER_BITS, "8 bits")


def clocked(name: str, own: str) -> str:
    """Milliseconds of the arms of `budgets.py`; own: what the weights of the policy's steps are stored in."""
    arms = of.read(name)["arms"]
    dense = arms["int8, dense"]["ms"]["median"]
    names = {"dense": f"{own}, dense"} | {name: f"{own}, {name}" for name in arms if name.startswith("budget")}
    rows = [
        [names.get(name, name), f"{arm['ms']['median']:.1f}", f"{arm['ratio']:.2f}×",
         f"{dense / arm['ms']['median']:.2f}×", f"{arm['realised']:.3f}" if "realised" in arm else "—"]
        for name, arm in arms.items()
    ]  # fmt: skip
    return markdown(
        ("Steps", "ms", f"speed, {own} dense = 1", "speed, int8 dense = 1", "share of the time by step times"), rows
    )


ORACLE = "oracle/fitted-0.5b"


@table
def oracle_fitted() -> str:
    """The share of an oracle's gain that a policy of `solm fit` gets, by budgets in time; once measured."""
    if not of.measured(ORACLE):
        return ""
    points, rows = of.read(ORACLE)["points"], []
    for budget in sorted({point["budget"] for point in points if point["arm"] == "oracle"}):
        found = {point["arm"]: point for point in points if point["budget"] == budget}
        lost = {arm: point["nats"] - points[0]["nats"] for arm, point in found.items()}
        gained = [(lost[arm] - lost["policy"]) / (lost[arm] - lost["oracle"]) for arm in ("allocated", "uniform")]
        rows.append(
            [f"{budget:g}", f"{found['policy']['step_ms']:.1f} / {found['oracle']['step_ms']:.1f}",
             *(signed(lost[arm]) for arm in ("uniform", "allocated", "policy", "oracle")),
             interval(Difference.of(found["oracle"]["difference"])), *(f"{100 * share:.0f} %" for share in gained)]
        )  # fmt: skip
    head = ("Share of time", "ms, policy / oracle", "uniform", "allocated", "policy", "oracle", "policy − oracle",
            "of allocated → oracle", "of uniform → oracle")  # fmt: skip
    return markdown(head, rows)


@table
def fit_minutes() -> str:
    """What policies of fits of several lengths lose, on the same texts at the same milliseconds."""
    rows = []
    for minutes in of.FIT_MINUTES:
        points = of.read(f"fitted-minutes/{minutes}")["points"]
        ours = sorted((point for point in points if point["arm"] == "policy"), key=lambda point: point["budget"])
        uniform = {point["budget"]: point["difference"] for point in points if point["arm"] == "uniform"}
        cells = (
            f"{signed(point['nats'] - points[0]['nats'])}; {interval(Difference.of(uniform[point['budget']]))}"
            for point in ours
        )
        rows.append([str(minutes), *cells])
    return markdown(("Minutes", *(f"{point['budget']:g} of the time" for point in ours)), rows)


@table
def fit_times() -> str:
    """Minutes that fits take, by phase, and the most memory that they hold."""
    found = of.read("fits-0.5b")
    phases = ("timings", "allocation", "samples", "level costs", "long contexts", "comparison")
    rows = []
    for fit in found["fits"]:
        taken = {phase: seconds / 60 for phase, seconds in fit["seconds"].items()}
        others = sum(minutes for phase, minutes in taken.items() if phase not in phases)
        rows.append(
            [f"{fit['minutes']:g}", f"{sum(taken.values()):.1f}", *(f"{taken[phase]:.1f}" for phase in phases),
             f"{others:.1f}", f"{fit['peak_gib']:.2f}", f"{fit['peak_gib'] - found['loaded_gib']:.2f}"]
        )  # fmt: skip
    memory = ("most memory, GiB", "of it beside the loaded model, GiB")
    return markdown(("Minutes asked for", "taken", *phases, "others", *memory), rows)


@table
def own_texts() -> str:
    """A fit that also learns from texts of the model's own minus one that does not, by the text that is read."""
    names = {"own-texts-135m-given": "given", "own-texts-135m-own": "its own"}
    found = {label: of.read(name)["points"] for name, label in names.items()}
    budgets = sorted({point["budget"] for points in found.values() for point in points if point["arm"] == "given"})
    rows = []
    for label, points in found.items():
        by = {point["budget"]: point["difference"] for point in points if point["arm"] == "given"}
        rows.append([label, *(interval(Difference.of(by[budget])) for budget in budgets)])
    return markdown(("Read", *(f"{budget:g} of the time" for budget in budgets)), rows)


@table
def domains_larger() -> str:
    """What the network of the policy for the 0.5B says of texts of other sources, and what it is worth there."""
    rows = []
    for source in of.read("domains-0.5b")["sources"]:
        said = source["sensitivities"]["mlp"]
        for point in source["points"]:
            rows.append([
                source["name"], f"{said['mean']:.2f} ({said['divergence']:.2f})", f"{point['budget']:g}",
                f"{point['gap']:.3f}", *(signed(point[arm] - point["dense"]) for arm in ("policy", "allocated")),
                interval(Difference.of(point["difference"])),
            ])  # fmt: skip
    head = ("Text", "sensitivity of MLPs (KL)", "net keep", "missed by", "policy", "allocated", "policy − allocated")
    return markdown(head, rows)
