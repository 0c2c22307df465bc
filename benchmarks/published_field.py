"""Reading what benchmarks/engine.py found of every engine on a model's file, from as many runs as there are of it."""

from dataclasses import dataclass, replace
from typing import Any

from published import measured, read
from published_speed import LARGER

RUNS = ("", "-rows", "-lookup")
"""What follows engine-SIZE in the names of results: the main run, more rows, prompt lookup. Where
several have a figure, the first one counts."""
FUSED = "llama.cpp fused"


@dataclass
class Engine:
    """One engine on one file. step_ms: by context, setting and rows; prompt: tokens per second by context; start:
    seconds to the first token of a second start, and the peak of resident memory in GiB."""

    name: str
    version: str
    weights: str
    instructions: str
    step_ms: dict[tuple[int, str, int], float]
    prompt: dict[int, float]
    start: tuple[float, float] | None

    @property
    def label(self) -> str:
        """The library, its version, and what it does besides."""
        name, _, rest = self.name.split(",")[0].partition(" ")
        return " ".join(part for part in (name, self.version.split("-")[0], rest) if part)

    def step(self, context: int, setting: str, rows: int = 1) -> float | None:
        return self.step_ms.get((context, setting, rows))

    @property
    def settings(self) -> list[str]:
        return list(dict.fromkeys(setting for _, setting, _ in self.step_ms))


def sizes() -> list[str]:
    """Of `LARGER`, those that were measured."""
    return [size for size in LARGER if measured(f"engine-{size.lower()}")]


def field(size: str) -> list[Engine]:
    """Every engine that ran, solm first; llama.cpp's two attention implementations are one engine, at each place the
    faster of the same run."""
    found: dict[str, Engine] = {}
    for name in (f"engine-{size.lower()}{run}" for run in RUNS):
        told = read(name) if measured(name) else {"peers": {}}
        here: dict[str, Engine] = {}
        for engine, one in {"solm": told, **told["peers"]}.items():
            if "contexts" in one:
                _add(here, engine.replace(FUSED, "llama.cpp"), one)
        for engine, made in here.items():
            found[engine] = _merged(found[engine], made) if engine in found else made
    return list(found.values())


def _add(found: dict[str, Engine], name: str, one: dict[str, Any]) -> None:
    engine = found.setdefault(
        name, Engine(name, one.get("version", ""), one["weights"], one.get("instructions", ""), {}, {}, None)
    )
    for context, here in one["contexts"].items():
        at = int(context)
        rate = here["prefill_tokens_per_second"]["median"]
        engine.prompt[at] = max(rate, engine.prompt.get(at, 0.0))
        for setting, by_rows in here["step_ms"].items():
            for rows, taken in by_rows.items():
                place = (at, setting, int(rows))
                engine.step_ms[place] = min(taken["median"], engine.step_ms.get(place, float("inf")))
    if "start_seconds" in one and engine.start is None:
        engine.start = one["start_seconds"]["second"]["median"], one["peak_gib"]["second"]


def _merged(first: Engine, later: Engine) -> Engine:
    return replace(
        first, step_ms=later.step_ms | first.step_ms, prompt=later.prompt | first.prompt,
        start=first.start or later.start,
    )  # fmt: skip
