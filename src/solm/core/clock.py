"""`StepClock`: what steps of a model take on this machine, measured in seconds; a file in the cache folder."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from solm.core.errors import PolicyMismatchError, counted
from solm.core.provenance import plain_name

UNSURE = 0.03
"""Error of a measurement from which on it is made anew at a later occasion."""
_WINDOW, _EVERY = 96, 32
"""Steps whose median is taken, and after which it is taken anew."""
_TOGETHER = 20.0
"""Seconds within which steps are compared: the machine may have changed since earlier ones."""
_PAIRS, _FEWEST = 15, 3
"""Comparisons of the two kinds of steps whose median is taken, and that it needs at least."""
_MOVED = 0.01
"""Change of a scale below which it stays: texts should not change for nothing."""
_PROBED = 512
"""Cheap steps without a dense one after which two dense ones are made, of which the second is timed: below 0.5 % of
the time."""


class StepClock(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Milliseconds of the single steps of a row, dense ones without guesses.

    A dense step that sees n keys takes base_ms + key_ms * n. A step that leaves something out takes extra_ms more, less
    page_ms for every key that it does not read, mlp_ms times the share of channels that it leaves out, and bits_ms
    times that of weights' bits; all times `cheap`. contexts: where steps were timed. error: of a step's share of the
    dense step's time, one standard error, and what the line leaves unexplained. dense, cheap: the scales of the two
    kinds of steps, 1 as measured; they move while replies are decoded.
    """

    format: Literal[1] = 1
    model: str
    backend: str
    threads: int = Field(ge=1)
    processor: str
    contexts: tuple[int, ...] = Field(min_length=1)
    base_ms: float = Field(gt=0)
    key_ms: float = Field(ge=0)
    page_ms: float = Field(ge=0)
    mlp_ms: float = Field(ge=0)
    extra_ms: float = Field(ge=0)
    bits_ms: float = Field(0.0, ge=0)
    error: float = Field(ge=0)
    policy: str = ""
    """The digest of the policy that decided."""
    dense: float = Field(1.0, gt=0)
    cheap: float = Field(1.0, gt=0)

    @property
    def measured_on(self) -> str:
        """Backend, threads and processor, in words."""
        where = f"{self.backend}, {counted(self.threads, 'thread')} of {self.processor}"
        return f"{where}, to within {self.error:.3f} of a dense step"

    @property
    def as_measured(self) -> "StepClock":
        """Without what was corrected since."""
        return self.model_copy(update={"dense": 1.0, "cheap": 1.0})

    def check(self, model: str, backend: str = "auto") -> None:
        """Raises `PolicyMismatchError` where it was measured for another model than `model`, or not on `backend`: its
        name, such as ``cpu int8``, ``cpu`` or ``torch``, or ``auto`` for any."""
        if plain_name(self.model) != plain_name(model):
            raise PolicyMismatchError(
                f"these timings are of {plain_name(self.model)}, not of {plain_name(model)}; run solm bench"
            )
        if backend not in ("auto", self.backend, self.backend.partition(" ")[0]):
            raise PolicyMismatchError(
                f"these timings are of {self.backend}, not of {backend}; choose their backend, or run solm bench"
            )

    def dense_ms(self, keys: Any) -> Any:
        """Milliseconds of dense steps that see `keys` [...]."""
        return self.dense * (self.base_ms + self.key_ms * keys)

    def rates(self, keys: float) -> np.ndarray:
        """Per axis the milliseconds of all of it: [axes] float64. Being linear, the cost of an average is the average
        cost: arms of equal average shares take equal time."""
        return self.cheap * np.array([self.page_ms * keys, self.mlp_ms, self.bits_ms])

    def extra(self, keys: float) -> float:
        """Milliseconds that a step takes more than the dense one for leaving out anything at all."""
        return self.cheap * (self.base_ms + self.key_ms * keys + self.extra_ms) - float(self.dense_ms(keys))

    def milliseconds(self, realised: np.ndarray, keys: np.ndarray | float) -> np.ndarray:
        """Of steps of realised shares [..., axes] that see keys [...]: [...] float64."""
        attention, mlp, bits = np.moveaxis(1 - np.asarray(realised), -1, 0)
        saved = attention * self.page_ms * keys + mlp * self.mlp_ms + bits * self.bits_ms
        cheap = self.cheap * (self.base_ms + self.key_ms * keys + self.extra_ms - saved)
        return np.where((np.asarray(realised) >= 1).all(-1), self.dense_ms(keys), cheap)

    def share(self, realised: tuple[float, ...], keys: float) -> float:
        """Of the dense step's milliseconds, for realised shares [axes]."""
        return float(self.milliseconds(np.array(realised), keys) / self.dense_ms(keys))


class RunningClock:
    """A clock whose scales follow the steps of replies. now: the clock as it is; a reply uses the one of its start.

    Medians of recent steps move both scales alike: what else a machine does is no property of one kind of steps. Where
    steps of both kinds follow one another, they are compared, and medians of comparisons move one scale against the
    other. A suspended process or a page that is read in makes one step long, and a clock that goes backwards one short,
    which medians do not see.
    """

    def __init__(self, clock: StepClock, seconds: Callable[[], float] = time.monotonic):
        self.now, self._seconds = clock, seconds
        self._measured = clock.as_measured
        self._recent: deque[tuple[float, bool, Sequence[float], int, float]] = deque(maxlen=_WINDOW)
        self._pairs: deque[float] = deque(maxlen=_PAIRS)
        self._steps = self._since_dense = 0

    def stepped(self, shares: Sequence[float], keys: int, milliseconds: float) -> bool:
        """A step of a single row, without guesses, realised shares [axes], saw `keys` keys and took so long. Returns
        whether it is time for a dense step to compare with."""
        dense = min(shares) >= 1
        self._recent.append((self._seconds(), dense, shares, keys, milliseconds))
        self._steps, self._since_dense = self._steps + 1, 0 if dense else self._since_dense + 1
        if self._steps % _EVERY == 0:
            self._move()
        if self._since_dense < _PROBED:
            return False
        self._since_dense = 0
        return True

    def _move(self) -> None:
        now = self._seconds()
        steps = [step for step in self._recent if 0 <= now - step[0] <= _TOGETHER]
        if len(steps) < _EVERY // 2:
            return
        _, kinds, shares, keys, taken = zip(*steps, strict=True)
        ratios, dense = np.array(taken) / self._measured.milliseconds(np.array(shares), np.array(keys)), np.array(kinds)
        if dense.any() and (~dense).sum() >= _FEWEST:
            self._pairs.append(float(np.median(ratios[~dense]) / np.median(ratios[dense])))
            self._recent = deque((step for step in steps if not step[1]), _WINDOW)  # none is compared twice
        relative = self.now.cheap / self.now.dense
        if len(self._pairs) >= _FEWEST:
            relative = float(np.median(self._pairs))
        level = float(np.median(ratios / np.where(dense, 1.0, relative)))
        if min(level, relative) <= 0:
            return
        scales = {"dense": round(level, 3), "cheap": round(level * relative, 3)}
        if max(abs(scale / getattr(self.now, kind) - 1) for kind, scale in scales.items()) > _MOVED:
            self.now = self.now.model_copy(update=scales)
