"""The chapter on the size ladder: figure, what it says in words, table. Empty where it was not measured."""

from collections.abc import Sequence

import published_ladder as ladder
from cells import NONE, interval, markdown, table
from published import measured, processor
from published_ladder import Rung, Verdict

WORDS: dict[Verdict, str] = {
    "wins": "better than every dense file that takes no longer",
    "ties": "as good as the best dense file that takes no longer, within the noise",
    "loses": "worse than a dense file that takes no longer", "alone": "faster than every dense file",
}  # fmt: skip
SHORT: dict[Verdict, str] = {"wins": "better", "ties": "as good", "loses": "worse", "alone": "faster than all"}


@table
def size_ladder() -> str:
    if not measured("ladder"):
        return ""
    every = ladder.rungs()
    files = dict.fromkeys(rung.model for rung in every)
    accuracies = {model: ladder.accuracy(model) for model in files}
    rows = []
    for rung in every:
        other = ladder.rival(rung, [one for one in every if one != rung]) if rung.dialled else None
        beside = [NONE, NONE]
        if rung.dialled:
            beside = [NONE, WORDS["alone"]] if other is None else [f"{other.file}", interval(rung.minus(other))]
        known = accuracies[rung.model]
        rows.append([
            rung.model, rung.type, rung.setting,
            f"{rung.milliseconds:.1f} ({rung.fastest:.1f} to {rung.slowest:.1f})",
            f"{ladder.share_of_dense(rung, every):.2f}" if rung.dialled else NONE, f"{rung.bits:.3f}",
            interval(rung.minus_dense) if rung.dialled else NONE, *beside,
            f"{100 * known[0]:.1f} ({known[1]:,})" if known and rung.own_type and not rung.dialled else NONE,
        ])  # fmt: skip
    head = ("Model", "Type", "Setting", "ms per token", "of its dense step's", "bits per byte", "above dense",
            "best dense file that takes no longer", "minus that file", "MMLU, % (questions)")  # fmt: skip
    return (
        "## The dial, or a smaller or more quantised model?\n\n"
        "![Milliseconds per token against bits per byte](figures/ladder.svg)\n\n"
        + "\n".join(f"- {line}" for line in sentences(every))
        + "\n\n"
        + markdown(head, rows, words=3)
        + f"\n{about(every)} `results/ladder.json`.\n"
    )


@table
def ladder_elsewhere() -> str:
    """Budgets of the same policies on two processors: what they took, and how they do against dense files."""
    here, other = ladder.rungs(), ladder.rungs("ladder-zen5")
    rows = []
    for rung in here:
        if not rung.dialled:
            continue
        [same] = [one for one in other if (one.file, one.setting) == (rung.file, rung.setting)]
        rows.append([
            rung.model, rung.setting.removeprefix("budget "),
            *(f"{ladder.share_of_dense(one, of):.2f}" for one, of in ((rung, here), (same, other))),
            *(SHORT[ladder.verdict(one, ladder.rival(one, of))] for one, of in ((rung, here), (same, other))),
        ])  # fmt: skip
    machines = [processor(run) for run in ("ladder", "ladder-zen5")]
    head = ("Model", "budget", *(f"{what}, {on}" for what in ("took", "beside dense files") for on in machines))
    return markdown(head, rows, words=1)


def sentences(every: Sequence[Rung]) -> list[str]:
    """How budgets on each model compare with dense files that take no longer."""
    told = []
    for model in dict.fromkeys(rung.model for rung in every if rung.dialled):
        found: dict[Verdict, list[str]] = {}
        for rung in every:
            if rung.model == model and rung.dialled:
                verdict = ladder.verdict(rung, ladder.rival(rung, every))
                found.setdefault(verdict, []).append(rung.setting.removeprefix("budget "))
        verdicts = "; ".join(f"at {', '.join(at)} {WORDS[how]}" for how, at in found.items())
        told.append(f"**{model}**, by budget: {verdicts}.")
    return told


def about(every: Sequence[Rung]) -> str:
    """What was measured, under the table."""
    each = {rung.model: rung.bytes_per_token for rung in every}
    return (
        f"{len(every[0].texts)} passages of {ladder.sources()}, the same bytes for every model. Bytes per token: "
        f"{', '.join(f'{size:.2f} for {model}' for model, size in each.items())}. Types other than a file's own are "
        "made from it by llama.cpp's converter: Q8_0 adds no precision, and Q4_0 rounds a second time. All settings "
        f"were timed in turn, in one process, on {ladder.machine()}: median (fastest to slowest). Bold: better; the "
        "interval excludes 0. MMLU is that of the dense model."
    )
