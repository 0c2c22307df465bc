"""What the pages say in words about divergences from dense predictions, see `statements`."""

import published as of
from published import Difference
from statements import says, tied, won
from tables_fits import DIVERGED, DIVERGED_LARGER


def apart(arm: str, name: str = DIVERGED) -> list[Difference]:
    """Policy minus `arm` by divergence, by rising budget."""
    points = [point for point in of.read(name)["points"] if point["arm"] == arm and point["budget"] < 1]
    ordered = sorted(points, key=lambda point: point["budget"])
    return [Difference.of(point["divergence_difference"]) for point in ordered]


def divergence(arm: str, budget: float, name: str = DIVERGED) -> float:
    points = of.read(name)["points"]
    return next(float(p["divergence"]) for p in points if (p["arm"], p["budget"]) == (arm, budget))


@says(
    "docs/results-quality.md",
    "beats *uniform* and *thresholds* at all eight budgets, and *constant* at the seven lowest.",
)
@says("docs/results-quality.md", "**loses** to *constant* at 0.957, by less than 0.0001 nats.")
@says("docs/results.md", "and thresholds alone at four; by divergence both at all eight.")
@says("docs/limits.md", "tell arms apart, it beats both at all eight.")
@says("README.md", "[divergence](docs/reproduce.md#two-measures) both")
def the_smaller_policy_by_divergence() -> bool:
    uniform, thresholds, constant = map(apart, ("uniform", "teal", "constant"))
    last = constant.pop()
    everywhere = len(uniform) == len(thresholds) == 8 and len(constant) == 7
    return everywhere and all(map(won, [*uniform, *thresholds, *constant])) and last.low > 0 and last.value < 1e-4


@says("docs/results-quality.md", "it diverges by 0.016 nats and *uniform* by 0.023.")
def where_losses_tie() -> bool:
    return [round(divergence(arm, 0.871), 3) for arm in ("policy", "uniform")] == [0.016, 0.023]


@says("docs/results-quality.md", "the network saves 3 % of the divergence, and nothing elsewhere.")
@says("docs/results.md", "the network at 0.655, by 0.015, and at 0.957, by 0.0001.")
def the_network_by_divergence() -> bool:
    found = apart("allocated")
    lowest, *better, fifth, sixth, seventh, highest = found
    lost = (round(lowest.value, 3), round(highest.value, 4)) == (0.015, 0.0001) and lowest.low > 0 and highest.low > 0
    saved = [
        -one.value / divergence("allocated", budget) for one, budget in zip(better, (0.698, 0.741, 0.785), strict=True)
    ]
    return (
        lost and all(map(won, better)) and all(map(tied, (fifth, sixth, seventh)))
        and all(round(100 * share) == 3 for share in saved)
    )  # fmt: skip


@says("docs/results-quality.md", "Its divergences, on 60 of these texts")
@says("docs/results-quality.md", "*uniform* at all eight budgets, and *thresholds* and *constant* at the seven lowest.")
@says("README.md", "at all eight.")
@says("docs/results-quality.md", "ties with *thresholds*, and **loses** to *constant* by less than 0.0001 nats.")
@says("docs/results-quality.md", "It beats *allocated* at the lowest budget and ties with it at the other seven.")
@says("docs/results.md", "by divergence, on 60 texts, uniform settings at all eight and thresholds at seven")
@says("docs/results.md", "texts, of which the rows on the 1.5B use 60.")
@says("docs/limits.md", "by divergence uniform settings at all eight and thresholds at seven.")
def the_larger_policy_by_divergence() -> bool:
    uniform, thresholds, constant, allocated = (
        apart(arm, DIVERGED_LARGER) for arm in ("uniform", "teal", "constant", "allocated")
    )
    beaten = len(uniform) == 8 and all(map(won, [*uniform, *thresholds[:-1], *constant[:-1], allocated[0]]))
    ties = tied(thresholds[-1]) and all(map(tied, allocated[1:]))
    return beaten and ties and 0 < constant[-1].value < 1e-4 and of.settings(DIVERGED_LARGER)["texts"] == 60


@says("docs/results.md", "to constants at the highest budget of the 0.5B and of the 1.5B, by less than 0.0001 nats;")
def constants_near_dense() -> bool:
    last = [apart("constant", name)[-1] for name in (DIVERGED, DIVERGED_LARGER)]
    return all(one.low > 0 and one.value < 1e-4 for one in last)
