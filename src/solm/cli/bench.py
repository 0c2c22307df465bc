"""`solm bench`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from solm.cli import checks
from solm.cli.options import ModelOptions
from solm.cli.output import Progress, Result, read_weights, table
from solm.core.errors import SolmError, argument, counted

if TYPE_CHECKING:
    from rich.table import Table

    from solm.core.clock import StepClock
    from solm.runtime.language_model import LanguageModel

_ACCEPTED = (0.5, 0.7, 0.8, 0.9, 0.95)
"""Shares of guesses that are accepted."""
_STEPS = 16
"""Tokens of the longest pass that is timed after a context, and steps whose energy is read together."""
_PAGES, _CHANNELS = (0.1, 0.2, 0.4), (0.4, 0.6, 0.8)
"""Shares read whose times are shown, the other axis dense."""


def bench(
    model: ModelOptions,
    policy: str | None = None,
    context: str = "64,1024,4096",
    seconds: Annotated[float, typer.Option(min=1, max=1000)] = 5,
    out: Path | None = None,
) -> Result:
    """Measure this machine: milliseconds of dense steps and of steps that leave something out, and of passes that
    verify guesses.

    \b
    Examples:
      solm bench --policy builtin:smollm2-135m-cpu --out timings.json
      solm generate --policy builtin:smollm2-135m-cpu --timings timings.json --budget ms=2.5 "Why?"

    Args:
        context: Context lengths, in tokens, whose steps are shown and at which passes are timed.
        seconds: How long steps are timed.
        out: Write the times of steps here, for --timings.
    """
    from solm.core.files import write_text
    from solm.runtime.calibrate import known_text
    from solm.runtime.clock import measure_clock, pass_milliseconds

    checks.out_file(out)
    with argument("context"):
        lengths = _counts(context)
    prepared = model.prepare(policy)
    with argument("context"):
        prepared.check_room(lengths[-1] + _STEPS)
    lm = read_weights(prepared)
    with Progress() as progress:
        lm = lm.timed(progress.show)  # with a calibration, as replies under budgets in time
        measured = measure_clock(lm, progress.show, seconds)
        progress.show("measuring passes", 0, None)
        text = known_text(lm, lengths[-1] + _STEPS)
        passes = {length: pass_milliseconds(lm, text, length) for length in lengths}
    if out is not None:
        write_text(out, measured.model_dump_json(indent=2) + "\n")
    paying = {length: _paying(times) for length, times in passes.items()}
    content = measured.model_dump(mode="json") | {"pass_ms": passes, "guesses_that_pay": paying}
    content["dense_step_joules"] = {length: _joules(lm, length) for length in lengths}
    return Result(content, [_table(measured, lengths), _pass_table(passes, paying)])


def _paying(times: dict[int, float]) -> dict[float, int]:
    """How many guesses would be made before every pass, by how often one is accepted."""
    from solm.runtime.guess import Guesser

    guesser = Guesser()
    for count, milliseconds in [*times.items()] * 50:  # after which nothing is left of what is known before
        guesser.passed(count, milliseconds / 1000)
    return {accepted: guesser.paying(accepted) for accepted in _ACCEPTED}


def _pass_table(passes: dict[int, dict[int, float]], paying: dict[int, dict[float, int]]) -> "Table":
    """Milliseconds and the factor to one token, by tokens of a pass; and what is guessed then."""
    rows = [
        [
            counted(count, "token"),
            *(f"{times[count]:.2f} ({times[count] / times[1]:.2f} x)" for times in passes.values()),
        ]
        for count in passes[min(passes)]
    ]
    rows += [
        [f"guesses made where {accepted:.0%} are accepted", *(str(counts[accepted]) for counts in paying.values())]
        for accepted in _ACCEPTED
    ]
    return table("milliseconds per pass", ["", *(f"context {seen}" for seen in passes)], rows)


def _joules(lm: "LanguageModel", context: int) -> float | None:
    """What a dense step before this context is full takes on average; None where the machine does not tell."""
    from solm.runtime.calibrate import known_text

    if lm.meter is None:
        return None
    tokens, session, read = known_text(lm, context), lm.session(capacity=context), max(1, context - _STEPS)
    session.prefill(tokens[:, :read])
    before = lm.meter.joules()
    for place in range(read, context):
        session.extend(tokens[:, place : place + 1], exact_largest=1)
    after = lm.meter.joules()
    return None if before is None or after is None or read == context else (after - before) / (context - read)


def _counts(text: str) -> tuple[int, ...]:
    """The whole numbers of at least 1 in a list such as 64,1024, by rising size."""
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise SolmError(f"{text!r} is not a list of whole numbers such as 64,1024") from None
    if numbers[0] < 1:
        raise SolmError(f"{numbers[0]} is out of range: it must be at least 1")
    return tuple(numbers)


def _table(clock: "StepClock", contexts: tuple[int, ...]) -> "Table":
    """Milliseconds and the factor to dense, by level and context, by the line through what was timed."""
    keeps = {
        "dense": (1.0, 1.0, 1.0),
        **{f"pages {level:g}": (level, 1.0, 1.0) for level in _PAGES},
        **{f"MLP {level:g}": (1.0, level, 1.0) for level in _CHANNELS},
        f"pages {_PAGES[0]:g}, MLP {_CHANNELS[0]:g}": (_PAGES[0], _CHANNELS[0], 1.0),
    }
    cells = [
        [
            name,
            *(
                f"{clock.milliseconds(np.array(kept), seen):.2f} ({1 / clock.share(kept, seen):.2f} x)"
                for seen in contexts
            ),
        ]
        for name, kept in keeps.items()
    ]
    about = f"{clock.model}, {clock.measured_on}: milliseconds per step"
    return table(about, ["", *(f"context {seen}" for seen in contexts)], cells)
