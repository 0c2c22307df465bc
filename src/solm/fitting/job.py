"""What the phases of a fit share: the model, its texts, the folder, and how far everything is."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from solm.core.errors import DataError
from solm.core.measured import MeasuredCost
from solm.core.timings import StepTimings
from solm.data.windows import TokenStream
from solm.fitting.folder import FitFolder
from solm.fitting.plan import PHASES, Sizes, Speed, measure_speed, plan
from solm.runtime.language_model import LanguageModel
from solm.training.interrupt import Interrupted

HELD_OUT = 0.25
"""Part of every source, at its end, that only the comparison reads."""
_SCORED = 129
"""Tokens after a context that the longest of the phases' texts has."""
_LEAST_TEXTS = 4
"""Texts that each part of a source must have room for."""
_CONTEXTS = (512, 384, 256, 128)

Report = Callable[[str, int, int, float], None]
"""Called with a phase, its parts done and in all, and the seconds left of the whole fit."""


@dataclass(frozen=True)
class Texts:
    """The tokens of every source: what phases learn from, and what only the comparison reads. context: tokens that are
    read densely before those that are scored."""

    train: list[TokenStream]
    held_out: list[TokenStream]
    context: int

    @classmethod
    def split(cls, streams: list[TokenStream], limit: int | None) -> "Texts":
        """limit: the model's context. Raises `DataError` where a source or the model has too little room."""
        room = limit or 1 << 30
        for context in _CONTEXTS:
            wanted = context + _SCORED
            parts = [_parted(stream, wanted) for stream in streams]
            if wanted <= room and all(_enough(train, held, wanted) for train, held in parts):
                return cls([train for train, _ in parts], [held for _, held in parts], context)
        least = 2 * _LEAST_TEXTS * (_CONTEXTS[-1] + _SCORED)
        small = min(streams, key=lambda stream: len(stream.tokens))
        if room < _CONTEXTS[-1] + _SCORED:
            raise DataError(
                f"the model's context of {room} tokens is below {_CONTEXTS[-1] + _SCORED}, which a fit needs"
            )
        raise DataError(f"--data: {small.name} holds {len(small.tokens)} tokens; a fit needs {least} of every source")

    def windows(self, length: int) -> int:
        """How many texts of `length` tokens the comparison can have: as many from every source."""
        return len(self.held_out) * min(len(stream.tokens) // length for stream in self.held_out)


def _enough(train: TokenStream, held_out: TokenStream, length: int) -> bool:
    return min(len(train.tokens), len(held_out.tokens)) >= _LEAST_TEXTS * length


def _parted(stream: TokenStream, least: int) -> tuple[TokenStream, TokenStream]:
    """The parts of a source, of which the held-out one has room for a few texts of `least` tokens if it is not half."""
    total = len(stream.tokens)
    cut = total - max(round(HELD_OUT * total), min(_LEAST_TEXTS * least, total // 2))
    return (
        TokenStream(stream.tokens[:cut], stream.name, f"{stream.fingerprint}:{cut}"),
        TokenStream(stream.tokens[cut:], stream.name, f"{stream.fingerprint}:-{cut}"),
    )


@dataclass
class Job:
    """A fit under way. stop: gets an exit code when the run is to stop (`training.interrupt.signals`)."""

    lm: LanguageModel
    texts: Texts
    folder: FitFolder
    minutes: float
    seed: int
    stop: list[int]
    report: Report = lambda phase, done, total, left: None
    _begun: dict[str, float] = field(default_factory=dict)

    def sizes(self, phase: str, timings: StepTimings | None = None) -> Sizes:
        """What a phase measures. A new phase times the model first."""
        return self.folder.sizes(phase, lambda: self.planned(self.speed(), timings))

    def speed(self) -> Speed:
        tokens = self.texts.train[0].tokens[None, : self.texts.context + 1]
        return measure_speed(self.lm, tokens)

    def planned(self, speed: Speed, timings: StepTimings | None = None, strict: bool = False) -> Sizes:
        """The sizes that fit into the minutes at `speed`; timings tell what pages are worth."""
        worth = 0.0
        if timings is not None:
            known = MeasuredCost(timings, self.lm.sparsity, self.lm.shapes)
            longest = timings.contexts[-1]
            worth = known.rates(longest)[0] / known.dense(longest)
        longest = min(self.lm.context or 1 << 30, min(len(stream.tokens) for stream in self.texts.train))
        windows = self.texts.windows(self.texts.context + _SCORED)
        return plan(
            self.minutes, speed, self.lm.shapes, context=self.texts.context, longest=longest, windows=windows,
            attention=worth, strict=strict,
        )  # fmt: skip

    def progress(self, phase: str) -> Callable[[int, int], None]:
        """What a phase calls with its parts done and in all. Raises `Interrupted` where the run is to stop."""
        self._begun[phase] = time.monotonic()
        names = list(PHASES)
        later = sum(60 * self.minutes * PHASES[name] for name in names[names.index(phase) + 1 :])
        planned = 60 * self.minutes * PHASES[phase]

        def told(done: int, total: int) -> None:
            elapsed = time.monotonic() - self._begun[phase]
            left = elapsed / done * (total - done) if done else planned
            self.report(phase, done, total, left + later)
            if self.stop and done < total:  # after the last part the phase writes its result first
                raise Interrupted(self.stop[0])

        return told

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)
