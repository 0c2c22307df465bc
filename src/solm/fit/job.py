"""What the phases of a fit share: the model, its texts, the folder, and how far everything is."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from solm.core.actions import FULL_BITS, HIGH_BITS
from solm.core.clock import StepClock
from solm.core.errors import SolmError
from solm.core.files import read_json, read_model
from solm.core.sparsity import ChannelThresholds, SparsityConfig
from solm.evaluation.texts import TokenStream
from solm.fit.folder import ALLOCATION, FITTED, OWN_TEXTS, THRESHOLDS, TIMINGS, FitFolder
from solm.fit.plan import PHASES, Sizes, Speed, measure_speed, plan
from solm.fit.texts import Texts, WholeTexts
from solm.policies.artifact import TrainedPolicy
from solm.policies.curves import site_axes, trusted
from solm.runtime.calibrate import worth_parts
from solm.runtime.language_model import LanguageModel

Report = Callable[[str, int, int, float], None]
"""Called with a phase, its parts done and in all, and the seconds left of the whole fit."""
OWN = "the model's own"
"""The name of the texts that the model continued."""
_LONG = 4096
"""Tokens after which all pages are worth the most that the allocation looks at."""
_UPPER = 1 - HIGH_BITS / FULL_BITS
"""Share of the bits that steps leave out which read the upper ones."""
_AT_ONCE = 0.05
"""Seconds. Parts that come this soon after the first one were read from an interrupted run."""


@dataclass
class Job:
    """A fit under way."""

    lm: LanguageModel
    texts: Texts
    folder: FitFolder
    minutes: float
    seed: int
    report: Report = lambda phase, done, total, left: None
    remark: Callable[[str], None] = lambda text: None

    def sizes(self, phase: str, timings: StepClock | None = None) -> Sizes:
        """What a phase measures. A new phase times the model first, and fits into its part of the time that is left."""
        return self.folder.sizes(phase, lambda: self.planned(self.speed(), timings, minutes=self.pace(phase)))

    def pace(self, phase: str) -> float:
        """Minutes of a whole fit that, from `phase` on, takes the time that is left of this one; at least half."""
        names = list(PHASES)
        at = names.index(phase)
        spent = sum(self.folder.seconds.get(name, 0.0) for name in names[:at]) / 60
        share = sum(PHASES[name] for name in names[at:])
        return max((self.minutes - spent) / share, self.minutes / 2)

    def speed(self) -> Speed:
        return measure_speed(self.lm, self.texts.train[0].tokens[None, : self.texts.context + 1].long())

    def planned(
        self, speed: Speed, timings: StepClock | None = None, strict: bool = False, minutes: float | None = None
    ) -> Sizes:
        """The sizes that fit into the minutes at `speed`, by default the fit's; timings tell what pages are worth.
        strict: raise `SolmError` where not even the least of every phase fits."""
        worth = 0.0
        if timings is not None:
            worth = float(timings.rates(_LONG)[0] / timings.dense_ms(_LONG))
        longest = min(self.lm.context or 1 << 30, min(len(stream.tokens) for stream in self.texts.train))
        minutes = minutes or self.minutes
        sizes, least, needs = plan(
            minutes, speed, self.lm.shapes, context=self.texts.context, longest=longest, windows=self.texts.windows,
            sites=site_axes(self.lm.sparsity), attention=worth,
        )  # fmt: skip
        if strict and least > minutes:
            raise SolmError(
                f"--minutes: {minutes:g} is too short for the {needs} of this model on this machine; give at least "
                f"{math.ceil(10 * least) / 10:g}"
            )
        return sizes

    def progress(self, phase: str) -> Callable[[int, int], None]:
        """What a phase calls with its parts done and in all."""
        names, begun = list(PHASES), list[tuple[int, float]]()
        minutes = self.pace(phase)
        later = sum(60 * minutes * PHASES[name] for name in names[names.index(phase) + 1 :])
        planned = 60 * minutes * PHASES[phase]

        def report(done: int, total: int) -> None:
            # Parts of an interrupted run took none of this run's time, and the first part also prepares the others.
            now = time.monotonic()
            if not begun or not begun[0][0] or now - begun[0][1] < _AT_ONCE:
                begun[:] = [(done, now)]
            made, taken = done - begun[0][0], now - begun[0][1]
            left = taken / made * (total - done) if made else planned * (total - done) / max(total, 1)
            self.report(phase, done, total, left + later)

        return report

    def generator(self, number: int = 0) -> torch.Generator:
        """Random numbers that depend on the seed and `number` alone, so that a resumed run draws what it would have."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + number)

    @property
    def timings(self) -> StepClock:
        return read_model(self.folder.path / TIMINGS, StepClock)

    @property
    def rules(self) -> SparsityConfig:
        """How actions are carried out: by thresholds, shares of channels count about milliseconds, all layers alike."""
        thresholds = read_model(self.folder.path / THRESHOLDS, ChannelThresholds)
        return self.lm.sparsity.changed(**worth_parts(self.lm.shapes, self.lm.sparsity), thresholds=thresholds)

    @property
    def plain(self) -> SparsityConfig:
        """The same where weights' upper bits count what they take, as it was timed."""
        clock, rules = self.timings, self.rules
        if rules.bits_site != "weights" or not clock.mlp_ms:
            return rules
        part = 1 - clock.bits_ms * _UPPER / clock.mlp_ms
        return rules.changed(upper_bits_part=round(min(max(part, 0.5), 1.0), 3))

    @property
    def sparsity(self) -> SparsityConfig:
        """The same under the allocation."""
        return self.plain.under(trusted(read_json(self.folder.path / ALLOCATION)))

    @property
    def own_texts(self) -> list[TokenStream]:
        """Texts that the model continued, as one source; none where it had no time."""
        rows = read_json(self.folder.path / OWN_TEXTS)
        return [WholeTexts.of(torch.tensor(rows), OWN)] if rows else []

    @property
    def fitted(self) -> TrainedPolicy:
        """The policy, not yet compared."""
        return TrainedPolicy.from_pretrained((self.folder.path / FITTED).parent)
