"""What the pages say in words about the dial beside smaller and more quantised files, see `statements`."""

from collections.abc import Sequence

import published_ladder as ladder
from published_ladder import Rung
from statements import says

SMALLER, LARGER = "Qwen2.5-Coder-0.5B", "Qwen2.5-Coder-1.5B"


def zen4() -> list[Rung]:
    return ladder.rungs()


def zen5() -> list[Rung]:
    return ladder.rungs("ladder-zen5")


def dialled(every: Sequence[Rung], model: str = "") -> list[Rung]:
    """Budgets of a model, by default of all."""
    return [rung for rung in every if rung.dialled and model in ("", rung.model)]


def one(every: Sequence[Rung], file: str, setting: str) -> Rung:
    [found] = [rung for rung in every if (rung.file, rung.setting) == (file, setting)]
    return found


def milliseconds(*rungs: Rung) -> list[float]:
    return [round(rung.milliseconds, 1) for rung in rungs]


def verdicts(every: Sequence[Rung], model: str) -> list[str]:
    """How budgets on a model compare with dense files, by its settings."""
    return [str(ladder.verdict(rung, ladder.rival(rung, every))) for rung in dialled(every, model)]


@says("docs/results.md", "On the 1.5B at all four budgets on Zen 4, and at two of them on Zen 5. On the 0.5B never")
def the_dial_beside_smaller_files() -> bool:
    smaller = {*verdicts(zen4(), SMALLER), *verdicts(zen5(), SMALLER)}
    # By medians alone the lowest wins on Zen 5, as the Q4_0 file takes a tenth of a millisecond longer: two, not three.
    return (
        smaller == {"loses"}
        and verdicts(zen4(), LARGER) == ["wins"] * 4
        and verdicts(zen5(), LARGER) == ["ties", "wins", "wins", "wins"]
        and as_long_and_worse()
    )


@says("docs/results-quality.md", "takes as long as that file, 18.8 and 18.9 ms, and is **worse**:")
@says("docs/results-quality.md", "1.000 bits per byte, against 0.962.")
def as_long_and_worse() -> bool:
    pair = one(zen5(), f"{LARGER} Q4_K_M", "budget 0.683"), one(zen5(), f"{LARGER} Q4_0", "dense")
    return milliseconds(*pair) == [18.8, 18.9] and [round(rung.bits, 3) for rung in pair] == [1.000, 0.962]


@says("docs/results-quality.md", "file by medians only: 33.2 and 33.5 ms, and rounds overlap.")
def by_medians_alone() -> bool:
    budget, file = one(zen4(), f"{LARGER} Q4_K_M", "budget 0.842"), one(zen4(), f"{LARGER} Q4_0", "dense")
    return milliseconds(budget, file) == [33.2, 33.5] and budget.slowest > file.fastest


def apart(every: Sequence[Rung]) -> list[tuple[str, str]]:
    """Budgets all of whose rounds were faster than any dense one."""
    dense = {rung.model: rung for rung in every if rung.own_type and not rung.dialled}
    faster = [rung for rung in dialled(every) if rung.slowest < dense[rung.model].fastest]
    return [(rung.model, rung.setting.removeprefix("budget ")) for rung in faster]


@says(
    "docs/results-quality.md",
    "All rounds of a budget were faster than any dense one at 0.721 of the 0.5B and at 0.762 and",
)
@says("docs/results-quality.md", "the 1.5B, and on Zen 5 also at 0.791 of the 0.5B.")
def times_that_are_apart() -> bool:
    both = [(SMALLER, "0.721"), (LARGER, "0.762"), (LARGER, "0.683")]
    return apart(zen4()) == both and apart(zen5()) == [(SMALLER, "0.791"), *both]


@says("docs/results.md", "on the 1.5B at budget 0.921 on Zen 5, 24.1 ms against 23.0")
@says("docs/results.md", "135M at 0.956 on Zen 4, 4.9 ms against 4.7.")
def budgets_slower_than_dense_steps() -> bool:
    slower = [
        (rung.setting, *milliseconds(rung, one(every, rung.file, "dense")))
        for every in (zen5(), zen4()) for rung in dialled(every) if ladder.share_of_dense(rung, every) > 1.02
    ]  # fmt: skip
    return slower == [("budget 0.921", 24.1, 23.0), ("budget 0.956", 4.9, 4.7)]


def missed(every: Sequence[Rung], model: str = "") -> tuple[float, float]:
    """The least and the most that budgets took more of their dense step, as shares of it, than they asked for."""
    more = [ladder.missed(rung, every) for rung in dialled(every, model)]
    return round(min(more), 2), round(max(more), 2)


@says("README.md", "budgets took up to 0.10 more of a dense step than asked for.")
def budgets_of_the_smaller_model_were_missed() -> bool:
    return max(missed(zen4(), SMALLER)[1], missed(zen5(), SMALLER)[1]) == 0.10


@says(
    "docs/results-quality.md",
    "On Zen 4 budgets took between 0.03 less and 0.09 more of the dense step's time than they",
)
@says("docs/results-quality.md", "were met within 0.03. On Zen 5 they took 0.05 to 0.15 more: dense steps were faster")
@says(
    "docs/limits.md",
    "budgets on three models took 0.05 to 0.15 more of the dense step's time than they asked for on Zen 5",
)
@says("docs/limits.md", "between 0.03 less and 0.09 more on Zen 4")
def budgets_were_missed_where_steps_were_timed() -> bool:
    larger = max(map(abs, missed(zen4(), LARGER)))
    return missed(zen4()) == (-0.03, 0.09) and missed(zen5()) == (0.05, 0.15) and larger <= 0.03
