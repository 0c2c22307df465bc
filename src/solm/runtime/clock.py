"""What steps take on this machine: measured once in a few seconds, kept, and corrected by the steps of replies."""

import hashlib
import json
import logging
import re
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import BaseModel

from solm.backends.session import AnyPolicy, Session
from solm.core.actions import FULL_BITS, HIGH_BITS
from solm.core.arrays import Array, as_numpy
from solm.core.clock import UNSURE, StepClock
from solm.core.cost import relative_bytes
from solm.core.errors import SolmError
from solm.core.files import cache_folder, read_model, write_text
from solm.core.provenance import processor
from solm.policies.schedules import Dense
from solm.runtime.calibrate import Progress, known_text
from solm.runtime.controlled import ControlledModel

SECONDS, SECONDS_PER_BILLION = 1.2, 3.0
"""That a measurement takes: these, and so many more for every billion of weights."""
_NEAR, _FAR = 64, 1024
"""Tokens after which steps are timed; the second as far as a third of the time allows."""
_KEEPS = (0.5, 0.65, 0.8, 0.9)
"""Shares of the channels that steps keep which are timed."""
PASSES = (1, 2, 4, 8, 16)
"""Tokens of the dense passes that are timed."""
_STEPS, _MOST_ROUNDS = 5, 20
"""Steps of each kind that are timed in a round, after one that is not, and rounds."""
_HORIZON = 512
_USUAL_KEYS = (0.5, 4.0)
"""What a key takes over its bytes at the rate of a dense step's, as far as that is believed: with few keys it is less
than the noise of a timing."""
_LEAST_RATE = 0.4
"""What leaving out channels saves of a dense step at least, over the bytes that it saves, where a measurement was too
disturbed to tell. Measurements of the embedded model, which saves least, give about as much."""
STALE = 600.0
"""Seconds until what a busy machine disturbed is measured anew."""
_EXTRA, _MOST_EXTRA = 0.04, 0.12
"""Of a dense step: what leaving out anything takes by itself, as was seen on several models, which counts as one more
timed level; and what it may take."""
_LOG = logging.getLogger("solm")
_Kept = TypeVar("_Kept", bound=BaseModel)


def kept(
    lm: ControlledModel, kind: type[_Kept], make: Callable[[], _Kept], stale: Callable[[_Kept], bool] = lambda _: False
) -> _Kept:
    """What the cache folder has of `kind` for this model, engine, rules, threads and processor; else what `make` gives,
    which is kept. stale: of what is made anew after a while. A file that is damaged is replaced, with a line in the
    log; a folder that cannot be written costs time."""
    path = _place(lm, kind)
    if path.exists():
        try:
            found = read_model(path, kind)
            if not stale(found) or time.time() - path.stat().st_mtime < STALE:
                return found
        except SolmError as error:
            _LOG.warning("%s; it is made anew", error)
    made = make()
    keep(lm, made)
    return made


def keep(lm: ControlledModel, made: BaseModel) -> None:
    """Write what was measured to the cache folder."""
    try:
        write_text(_place(lm, type(made)), made.model_dump_json() + "\n")
    except SolmError as error:
        _LOG.warning("what was measured is not kept, so that the next start measures again: %s", error)


def _place(lm: ControlledModel, kind: type[BaseModel]) -> Path:
    about = [lm.identity.model_dump(mode="json", exclude={"name"}), lm.backend.name, lm.threads, processor(),
             lm.sparsity.model_dump(mode="json"), kind.__name__]  # fmt: skip
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", lm.name)[:60].strip("-.") or "model"
    return cache_folder() / f"{readable}-{key}.{kind.__name__.lower()}.json"


def known_clock(policy: str) -> StepClock | None:
    """The latest clock of steps that the policy of this digest decided, on this processor; None where none is kept."""
    files = sorted(cache_folder().glob(f"*.{StepClock.__name__.lower()}.json"), key=lambda file: file.stat().st_mtime)
    for file in reversed(files):
        with suppress(SolmError):
            found = read_model(file, StepClock)
            if (found.policy, found.processor) == (policy, processor()):
                return found
    return None


def measure_clock(lm: ControlledModel, progress: Progress, seconds: float | None = None) -> StepClock:
    """Time steps of `lm` as replies take them, under its policy or its calibration.

    Steps of all kinds take turns, one by one, so that what else the machine does changes all of them alike; medians of
    their ratios to neighbouring dense steps are what counts. progress: called between steps; what it raises ends the
    measurement.
    """
    billions = (lm.shapes.layers * lm.shapes.layer_weights + lm.shapes.head_weights) / 1e9
    begun, name = time.monotonic(), "measuring this machine, once"
    seconds = SECONDS + SECONDS_PER_BILLION * billions if seconds is None else seconds

    def tell() -> None:
        progress(name, min(99, round(100 * (time.monotonic() - begun) / seconds)), 100)

    steps, rounds = _Steps(lm, begun + seconds / 3, tell), 0
    while not rounds or (time.monotonic() - begun < seconds and rounds < _MOST_ROUNDS):
        steps.round()
        rounds += 1
    progress(name, 100, 100)
    return steps.clock()


def pass_milliseconds(lm: ControlledModel, tokens: Array, context: int, rounds: int = 5) -> dict[int, float]:
    """Medians of dense passes over so many known tokens of a row, as they verify guesses, after a context. tokens:
    [1, context + 16]."""
    session = lm.session(capacity=context + max(PASSES))
    session.prefill(tokens[:, :context])
    found: dict[int, list[float]] = {count: [] for count in PASSES}
    for _ in range(rounds + 1):
        for count, times in found.items():
            begun = time.perf_counter()
            session.extend(tokens[:, context : context + count], exact_largest=1)
            times.append(1000 * (time.perf_counter() - begun))
            session.truncate(np.array([context]))
    return {count: statistics.median(times[1:]) for count, times in found.items()}


class _Steps:
    """Steps of all kinds, after few tokens and after more, read until `deadline` on the monotonic clock. tell: called
    between steps."""

    def __init__(self, lm: ControlledModel, deadline: float, tell: Callable[[], None]):
        self._lm, self._tell = lm, tell
        room = min(lm.context or _FAR + _HORIZON, _FAR + _HORIZON) - 4 * (_STEPS + 1)
        self._tokens = known_text(lm, _FAR + _HORIZON)
        policy: AnyPolicy = lm.policy("static") if lm.trained is None else lm.policy()
        (low, *_), (least, *_) = lm.space.mlp, lm.space.attention
        self._plans = [(0, policy, (1.0, max(keep, low), 1.0)) for keep in _KEEPS]
        self._read: list[tuple[int, Session]] = []
        session, read, taken = lm.session(_NEAR), 0, 0.0
        for place in (max(1, min(_NEAR, room)), 128, 256, 512, _FAR):
            begun = time.monotonic()
            if read and (place > room or least == 1 or begun + taken > deadline):
                break
            tell()
            session.prefill(self._tokens[:, read:place])
            taken, read = 2 * (time.monotonic() - begun), place
            self._read = [*self._read[:1], (place, session.fork(1, _STEPS))]
        if lm.sparsity.bits_site == "weights" and len(lm.space.bits) > 1:
            self._plans.append((0, policy, (1.0, 1.0, HIGH_BITS / FULL_BITS)))
        if len(self._read) > 1 and read > lm.sparsity.always_read:
            self._plans.append((1, policy, (least, 1.0, 1.0)))
        self.ms: dict[int, list[float]] = {place: [] for place, *_ in self._plans}
        self.ratios: list[list[float]] = [[] for _ in self._plans]
        self.shares: list[list[np.ndarray]] = [[] for _ in self._plans]

    def round(self) -> None:
        """Each kind `_STEPS` times, every one after a dense step that sees about as many keys."""
        dense = {place: self._fork(place, Dense(self._lm.space), (1.0, 1.0, 1.0)) for place in self.ms}
        cheap = [self._fork(*plan) for plan in self._plans]
        for step in range(_STEPS + 1):
            for number, (place, *_) in enumerate(self._plans):
                self._tell()
                whole, _ = self._step(dense[place], step)
                part, share = self._step(cheap[number], step)
                if step:  # the first one after a fork also takes memory
                    self.ms[place].append(whole)
                    self.ratios[number].append(part / whole)
                    self.shares[number].append(share)

    def _fork(self, place: int, policy: AnyPolicy, target: tuple[float, ...]) -> Session:
        fork = self._read[place][1].fork(1, len(_KEEPS) * (_STEPS + 1))
        fork.control(policy, np.array([target]), _HORIZON)
        return fork

    def _step(self, session: Session, step: int) -> tuple[float, np.ndarray]:
        """Milliseconds of a step, and the shares that it realised [axes]."""
        token = self._tokens[:, _FAR + step]
        begun = time.perf_counter()
        done = session.step(token, exact_largest=1)
        return 1000 * (time.perf_counter() - begun), as_numpy(done.realised)[0, 0]

    def clock(self) -> StepClock:
        """What was timed, as lines."""
        lm, contexts = self._lm, [self._read[place][0] for place in self.ms]
        dense = [statistics.median(ms) for ms in self.ms.values()]
        ratios = np.array([statistics.median(some) for some in self.ratios])
        kept = np.array([np.mean(some, 0) for some in self.shares])
        sure = [_spread(some) for some in self.ratios]
        key = _key_ms(lm, contexts, dense)
        count = len(_KEEPS)
        left_out = 1 - kept[:count, 1]
        extra, rate = _line(left_out, ratios[:count] - 1)
        error = max(*sure, float(np.abs(1 + extra - rate * left_out - ratios[:count]).max()))
        if error > UNSURE:  # noise must not have steps leave out more than the time that was asked for is worth
            bytes_saved = 1 - relative_bytes(kept[:count], contexts[0], lm.shapes, lm.sparsity)
            by_bytes = float((bytes_saved * left_out).sum() / max(float((left_out**2).sum()), 1e-12))
            extra, rate = _EXTRA, max(rate, _LEAST_RATE * by_bytes)
        page, bits = key, 0.0
        for number, (place, _, (pages, _, high)) in enumerate(self._plans[count:], count):
            saved = (1 + extra - ratios[number]) * dense[place] - rate * dense[0] * (1 - kept[number, 1])
            if high < 1:
                bits = max(saved / max(1 - kept[number, 2], 1e-9), 0.0)
            elif pages < 1:
                page = float(np.clip(saved / max((1 - kept[number, 0]) * contexts[-1], 1e-9), key / 2, key))
        return StepClock(
            model=lm.name, backend=lm.backend.name, threads=lm.threads, processor=processor(), contexts=tuple(contexts),
            base_ms=max(dense[0] - key * contexts[0], dense[0] / 2), key_ms=key, page_ms=page, mlp_ms=rate * dense[0],
            policy="" if lm.trained is None else lm.trained.config.digest,
            bits_ms=bits, extra_ms=extra * dense[0], error=round(error, 4),
        )  # fmt: skip


def _line(left_out: np.ndarray, change: np.ndarray) -> tuple[float, float]:
    """extra and rate, both at least 0, for which change [n] is nearest to extra - rate * left_out [n]."""
    left_out, change = np.asarray(left_out), np.asarray(change)
    rows = np.stack([np.ones(len(left_out) + 1), [0.0, *left_out]], 1)
    extra = float(np.clip(np.linalg.lstsq(rows, [_EXTRA, *change], rcond=None)[0][0], 0.0, _MOST_EXTRA))
    rate = float(((extra - change) * left_out).sum() / max(float((left_out**2).sum()), 1e-12))
    return extra, max(rate, 0.0)


def _spread(values: list[float]) -> float:
    """The standard error of the median of values, by the distance of their quartiles."""
    low, high = np.percentile(values, (25, 75))
    return float(0.93 * (high - low) / len(values) ** 0.5)


def _key_ms(lm: ControlledModel, contexts: list[int], dense: list[float]) -> float:
    """Milliseconds that a key adds to a dense step, by steps after two contexts and by its bytes."""
    shapes = lm.shapes
    key_bits = shapes.layers * shapes.kv_heads * 2 * shapes.head_dim * shapes.cache_bits
    by_bytes = dense[0] * key_bits / shapes.step_bits
    slope = (dense[-1] - dense[0]) / (contexts[-1] - contexts[0]) if len(contexts) > 1 else by_bytes
    return min(max(slope, _USUAL_KEYS[0] * by_bytes), _USUAL_KEYS[1] * by_bytes)
