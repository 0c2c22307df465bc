"""`solm bench`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from solm.cli import checks
from solm.cli.options import ModelOptions
from solm.cli.output import Progress, Result, read_weights, table
from solm.core.errors import SolmError, argument, counted

if TYPE_CHECKING:
    from rich.table import Table

    from solm.core.cost import StepTimings

_STEPS = 16
"""Positions that the timed steps need after a context."""


def bench(
    model: ModelOptions,
    policy: str | None = None,
    context: str = "64,1024,4096",
    rounds: Annotated[int, typer.Option(min=1, max=1000)] = 5,
    out: Path | None = None,
) -> Result:
    """Measure this machine: milliseconds of a step at several levels of each axis, for several contexts.

    \b
    Examples:
      solm bench --policy builtin:smollm2-135m-cpu --out timings.json
      solm generate --policy builtin:smollm2-135m-cpu --timings timings.json --budget ms=2.5 "Why?"

    Args:
        context: Context lengths, in tokens, at which steps are timed.
        rounds: Rounds, in each of which all settings take turns.
        out: Write the timings here, for budgets in milliseconds.
    """
    import torch

    from solm.core.files import write_text
    from solm.evaluation.step_timing import measure
    from solm.evaluation.texts import token_stream

    checks.out_file(out)
    with argument("context"):
        lengths = _counts(context)
    prepared = model.prepare(policy)
    with argument("context"):
        prepared.check_room(lengths[-1] + _STEPS)
    lm = read_weights(prepared)
    tokens = token_stream("pydoc:train", lm.tokenizer).spaced(1, lengths[-1] + 1, torch.Generator().manual_seed(0))
    with Progress() as progress:
        measured = measure(lm, tokens, lengths, rounds, lambda done, total: progress.show("measuring", done, total))
    if out is not None:
        write_text(out, measured.model_dump_json(indent=2) + "\n")
    return Result(measured.model_dump(mode="json"), [_table(measured)])


def _counts(text: str) -> tuple[int, ...]:
    """The whole numbers of at least 1 in a list such as 64,1024, by rising size."""
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise SolmError(f"{text!r} is not a list of whole numbers such as 64,1024") from None
    if numbers[0] < 1:
        raise SolmError(f"{numbers[0]} is out of range: it must be at least 1")
    return tuple(numbers)


def _table(times: "StepTimings") -> "Table":
    """Milliseconds and the factor to dense, by level and context."""
    rows = [("dense", [row[-1] for row in times.attention_ms])]
    rows += [
        (f"{name} {level:g}", [row[place] for row in measured])
        for name, levels, measured in (("pages", times.attention, times.attention_ms), ("MLP", times.mlp, times.mlp_ms))
        for place, level in enumerate(levels[:-1])
    ]
    rows.append((f"pages {times.attention[0]:g}, MLP {times.mlp[0]:g}", list(times.joint_ms)))
    if times.halved_ms:
        rows.append(("MLP weights' high halves", list(times.halved_ms)))
    dense = rows[0][1]
    cells = [
        [name, *(f"{value:.2f} ({whole / value:.2f} x)" for value, whole in zip(values, dense, strict=True))]
        for name, values in rows
    ]
    about = f"{times.model}, {times.backend}, {counted(times.threads, 'thread')}, {times.gigabytes_per_second:.0f} GB/s"
    return table(f"{about}: milliseconds per step", ["", *(f"context {seen}" for seen in times.contexts)], cells)
