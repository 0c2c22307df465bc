"""Reading what benchmarks/engine.py found of every engine on a model's file, from as many runs as there are of it."""

from dataclasses import dataclass
from typing import Any

from published import measured, read
from published_speed import LARGER

RUNS = ("", "-rows", "-16k")
"""What follows engine-SIZE in the names of results: the main one, more rows, a long context."""
FUSED = "llama.cpp fused"


@dataclass
class Engine:
    """One engine on one file. step_ms: by context, setting and rows; prompt: tokens per second by context."""

    name: str
    version: str
    weights: str
    instructions: str
    step_ms: dict[int, dict[str, dict[int, float]]]
    prompt: dict[int, float]
    start: tuple[float, float] | None
    """Seconds to the first token of a second start, and the peak of resident memory in GiB."""

    @property
    def label(self) -> str:
        """The library, its version, and what it does besides."""
        name, _, rest = self.name.split(",")[0].partition(" ")
        return " ".join(part for part in (name, self.version.split("-")[0], rest) if part)

    def step(self, context: int, setting: str, rows: int = 1) -> float | None:
        return self.step_ms.get(context, {}).get(setting, {}).get(rows)

    @property
    def settings(self) -> list[str]:
        return list(dict.fromkeys(setting for by_setting in self.step_ms.values() for setting in by_setting))


def sizes() -> list[str]:
    """Of `LARGER`, those that were measured."""
    return [size for size in LARGER if measured(f"engine-{size.lower()}")]


def field(size: str) -> list[Engine]:
    """Every engine that ran, solm first; llama.cpp's two attention implementations are one engine, at each place the
    faster."""
    found: dict[str, Engine] = {}
    for run in RUNS:
        name = f"engine-{size.lower()}{run}"
        if measured(name):
            told = read(name)
            for engine, one in {"solm": told, **told["peers"]}.items():
                if "contexts" in one:
                    _add(found, engine.replace(FUSED, "llama.cpp"), one)
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
            kept = engine.step_ms.setdefault(at, {}).setdefault(setting, {})
            for rows, taken in by_rows.items():
                kept[int(rows)] = min(taken["median"], kept.get(int(rows), float("inf")))
    if "start_seconds" in one and engine.start is None:
        engine.start = one["start_seconds"]["second"]["median"], one["peak_gib"]["second"]
