"""The table of all engines on one clock."""

from collections.abc import Callable

import published_field as of
from cells import NONE, markdown, table
from peers import LOOKED_UP
from published_field import Engine
from published_speed import LARGER

CONTEXTS, BATCH, ROWS, PROMPT = (64, 1024, 4096, 16384), 64, (1, 4, 16), 1024
OURS = {
    "dense": "greedy",
    "dense, every logit": "every logit",
    "mlp 0.6": "MLP 0.6",
    "pages 0.2, mlp 0.6": "pages 0.2, MLP 0.6",
}
"""The settings that are shown of solm, and what they are called."""


@table
def field() -> str:
    """A row for every engine and setting, model by model."""
    rows, used = [], {}
    for size in of.sizes():
        for engine in of.field(size):
            if engine.instructions:
                used[engine.label] = engine.instructions
            for setting in engine.settings if engine.name != "solm" else OURS:
                rows.append([LARGER[size], *row(engine, setting)])
    head = ("Model", "Engine", "Weights", f"prompt of {PROMPT:,}, tokens/s", *(f"ms at {at:,}" for at in CONTEXTS),
            *(f"tokens/s, {rows} row{'s' * (rows > 1)}" for rows in ROWS), "peak GiB", "start, s")  # fmt: skip
    told = "; ".join(f"{name}: {instructions}" for name, instructions in used.items())
    return markdown(head, rows, words=3) + (f"\nInstruction sets: {told}.\n" if told else "")


def row(engine: Engine, setting: str) -> list[str]:
    """The cells of an engine's setting; prompts, memory and start stand at its first one only."""
    first = setting == engine.settings[0]

    def cell(value: float | None, write: Callable[[float], str]) -> str:
        return NONE if value is None else write(value)

    what = OURS.get(setting, setting) if engine.name == "solm" else "" if setting in ("dense", LOOKED_UP) else setting
    rates = [None if (taken := engine.step(BATCH, setting, rows)) is None else 1e3 * rows / taken for rows in ROWS]
    return [
        engine.label + (f", {what}" if what else ""), engine.weights,
        cell(engine.prompt.get(PROMPT) if first else None, lambda rate: f"{rate:,.0f}"),
        *(cell(engine.step(at, setting), lambda taken: f"{taken:.1f}") for at in CONTEXTS),
        *(cell(rate, lambda found: f"{found:.0f}") for rate in rates),
        *(cell(engine.start[place] if first and engine.start else None, lambda x, d=digits: f"{x:.{d}f}")
          for place, digits in ((1, 2), (0, 1))),
    ]  # fmt: skip
