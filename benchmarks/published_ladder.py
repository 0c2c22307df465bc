"""Reading docs/results/ladder.json, where it was measured: models, their types, the dial, and which beats which.

docs/results/ladder-zen5.json is an earlier run on another processor.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from published import RESULTS, Difference, processor, read
from solm.evaluation.statistics import paired_difference

NAMES = {
    "builtin:smollm2-135m": "SmolLM2-135M", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf": "Qwen2.5-Coder-0.5B",
    "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf": "Qwen2.5-Coder-1.5B",
}  # fmt: skip
Verdict = Literal["wins", "ties", "loses", "alone"]


@dataclass(frozen=True)
class Rung:
    """A model in one type at one setting. milliseconds: of a step, median over rounds, of which `fastest` and `slowest`
    are the extremes. texts: bits per byte of every passage; minus_dense: bits per byte above the
    same file dense."""

    model: str
    type: str
    own_type: bool
    setting: str
    milliseconds: float
    fastest: float
    slowest: float
    bytes_per_token: float
    texts: tuple[float, ...]
    minus_dense: Difference

    @property
    def bits(self) -> float:
        """Per byte of text."""
        return float(np.mean(self.texts))

    @property
    def dialled(self) -> bool:
        return self.setting != "dense"

    @property
    def file(self) -> str:
        return f"{self.model} {self.type}"

    def minus(self, other: "Rung") -> Difference:
        """Bits per byte, paired over passages."""
        return Difference(*paired_difference(np.array(self.texts), np.array(other.texts)))


def machine() -> str:
    """What it was measured on, and how often."""
    whole = json.loads((RESULTS / "ladder.json").read_text())
    where, how = whole["environment"]["machine"]["instructions"], whole["settings"]
    return f"{how['threads']} threads of {processor('ladder')} with {where}, {how['rounds']} rounds"


def sources() -> str:
    """The names of the text that was scored."""
    return " and ".join(f"`{name}`" for name in read("ladder")["data"])


def rungs(run: str = "ladder") -> list[Rung]:
    """Of the file docs/results/`run`.json, in its order."""
    return [
        Rung(
            NAMES.get(point["model"], point["model"]), point["type"], point["own_type"], point["setting"],
            *(point["milliseconds"][which] for which in ("median", "low", "high")), point["bytes_per_token"],
            tuple(point["texts"]), Difference.of(point["minus_dense"]),
        )
        for point in read(run)["points"]
    ]  # fmt: skip


def share_of_dense(rung: Rung, every: Sequence[Rung]) -> float:
    """Milliseconds of a setting as a share of those of the same file dense."""
    [dense] = [one for one in every if one.file == rung.file and not one.dialled]
    return rung.milliseconds / dense.milliseconds


def missed(rung: Rung, every: Sequence[Rung]) -> float:
    """By how much a budget took more of its model's dense step than it asked for, as a share of that step."""
    return share_of_dense(rung, every) - float(rung.setting.removeprefix("budget "))


def rival(rung: Rung, every: Sequence[Rung]) -> Rung | None:
    """What a user without budgets would run in the same time: of the dense files that take no longer, the one of the
    fewest bits; None where all take longer."""
    allowed = [one for one in every if not one.dialled and one.milliseconds <= rung.milliseconds]
    return min(allowed, key=lambda one: one.bits, default=None)


def verdict(rung: Rung, other: Rung | None) -> Verdict:
    """How a rung does against its rival; `alone` without one."""
    if other is None:
        return "alone"
    found = rung.minus(other)
    return "wins" if found.high < 0 else "loses" if found.low > 0 else "ties"


def accuracy(model: str) -> tuple[float, int] | None:
    """MMLU of a dense model, and how many questions: the most that a result has; None where none has it."""
    known = []
    for path in sorted(RESULTS.glob("tasks*/mmlu*.json")):
        found = read(path.relative_to(RESULTS).with_suffix("").as_posix())
        if NAMES.get(found["settings"]["model"]) == model:
            [dense] = [point for point in found["points"] if point["arm"] == "dense"]
            known.append((dense["questions"], dense["scores"]["acc"]))
    return max(known)[::-1] if known else None
