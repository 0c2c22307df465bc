"""`StepTimings`: what steps take on a machine, in milliseconds; kept in a file and used for budgets in milliseconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from solm.core.actions import ActionSpace
from solm.core.errors import PolicyMismatchError
from solm.core.files import read_model
from solm.core.provenance import plain_name
from solm.core.sparsity import SparsityConfig
from solm.core.words import counted

LEVELS = ActionSpace(attention=(0.1, 0.2, 0.4, 1.0), mlp=(0.4, 0.6, 0.8, 1.0))
"""What is measured: one axis at a time, the others dense. Bits of activations change no step's time."""


class StepTimings(BaseModel):
    """Milliseconds of a step at batch 1, [contexts][levels] per axis; the last level is dense.

    Savings of the two axes are taken to add up; `joint_ms`, both at their lowest levels, tells how far that is so.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: int = Field(1, ge=1, le=1)
    model: str
    backend: str
    threads: int = Field(ge=1)
    contexts: tuple[int, ...] = Field(min_length=1)
    attention: tuple[float, ...] = LEVELS.attention
    mlp: tuple[float, ...] = LEVELS.mlp
    attention_ms: tuple[tuple[float, ...], ...]
    mlp_ms: tuple[tuple[float, ...], ...]
    joint_ms: tuple[float, ...]
    hidden: tuple[float, ...] = ()
    hidden_ms: tuple[tuple[float, ...], ...] = ()
    """Where it was measured: steps that keep these shares of the MLP's hidden channels and all else, [contexts]
    [levels]."""
    projected: tuple[float, ...] = ()
    projected_ms: tuple[tuple[float, ...], ...] = ()
    """The same for the inputs of attention's projections."""
    halved_ms: tuple[float, ...] = ()
    """Where bits are those of nested weights: steps that read the high halves alone, [contexts]."""
    gigabytes_per_second: float = Field(gt=0)
    """Plain reading, on the threads that were measured."""
    command: str = ""
    environment: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> "StepTimings":
        rows = len(self.contexts)
        for name, table, levels in (("attention", self.attention_ms, self.attention), ("mlp", self.mlp_ms, self.mlp)):
            if len(table) != rows or any(len(row) != len(levels) for row in table):
                raise ValueError(f"{name}_ms must have {rows} rows of {len(levels)}")
            if any(value <= 0 for row in table for value in row):
                raise ValueError(f"{name}_ms holds a time that is not positive")
        if list(self.contexts) != sorted(set(self.contexts)) or self.contexts[0] < 1:
            raise ValueError(f"contexts must rise, got {self.contexts}")
        for name, table, levels in (
            ("hidden", self.hidden_ms, self.hidden), ("projected", self.projected_ms, self.projected)
        ):  # fmt: skip
            if levels and (len(table) != rows or any(len(row) != len(levels) for row in table)):
                raise ValueError(f"{name}_ms must have {rows} rows of {len(levels)}")
        if len(self.joint_ms) != rows or len(self.halved_ms) not in (0, rows):
            raise ValueError(f"joint_ms must have {rows} values, and halved_ms as many or none")
        return self

    def dense(self, context: float) -> float:
        """Milliseconds of a dense step with `context` tokens seen; between measured contexts interpolated, beyond them
        the nearest holds."""
        return float(np.interp(context, self.contexts, self.dense_ms))

    @property
    def processor(self) -> str:
        """The processor that was measured; empty where the file does not say."""
        return str(self.environment.get("machine", {}).get("processor", ""))

    @property
    def measured_on(self) -> str:
        """Backend, threads and processor, in words."""
        return machine(self.backend, self.threads, self.processor)

    def elsewhere(self, backend: str, threads: int, processor: str) -> str | None:
        """What to say where steps were timed on another backend, another processor or with other threads; else None."""
        same = self.processor in ("", processor) and (self.backend, self.threads) == (backend, threads)
        if same:
            return None
        here = machine(backend, threads, processor if self.processor else "")
        return (
            f"step times were measured on {self.measured_on}, and this is {here}: budgets in time may be missed; "
            "measure with solm bench --policy POLICY --out FILE, and give --timings FILE"
        )

    @property
    def dense_ms(self) -> tuple[float, ...]:
        """Milliseconds of the dense step [contexts], the mean of two measurements: it is measured for both axes."""
        pairs = zip(self.attention_ms, self.mlp_ms, strict=True)
        return tuple((pages[-1] + channels[-1]) / 2 for pages, channels in pairs)

    @property
    def disturbances(self) -> tuple[float, ...]:
        """By context the relative difference of two measurements of one step: the dense one is measured for both axes.
        A quiet machine stays below 0.05."""
        pairs = ((pages[-1], channels[-1]) for pages, channels in zip(self.attention_ms, self.mlp_ms, strict=True))
        return tuple(abs(one - other) / min(one, other) for one, other in pairs)

    def lowest(self, other: "StepTimings") -> "StepTimings":
        """Of every step the lower of its times in two measurements: what other processes add only makes it longer.
        other: of all contexts of this one or some."""
        again = {context: number for number, context in enumerate(other.contexts)}

        def lower(name: str, least: Callable[[Any, Any], Any]) -> tuple[Any, ...]:
            theirs = getattr(other, name)
            return tuple(
                least(mine, theirs[again[context]]) if context in again else mine
                for context, mine in zip(self.contexts, getattr(self, name), strict=False)
            )

        tables = ("attention_ms", "mlp_ms", "hidden_ms", "projected_ms")
        found = {name: lower(name, lambda mine, theirs: tuple(map(min, mine, theirs))) for name in tables}
        return self.model_copy(update={**found, **{name: lower(name, min) for name in ("joint_ms", "halved_ms")}})

    def check(self, model: str, backend: str, sparsity: SparsityConfig) -> "StepTimings":
        """Itself if it was measured for `model` on `backend`; raises `PolicyMismatchError` otherwise."""
        if sparsity.bits_site == "weights" and not self.halved_ms:
            raise PolicyMismatchError("these timings do not cover the bits of weights; run solm bench --policy")
        self.check_model(model)
        if self.backend != backend:
            raise PolicyMismatchError(f"these timings are of {self.backend}, not of {backend}; run solm bench")
        return self

    def check_model(self, model: str, backend: str = "auto") -> None:
        """Raises `PolicyMismatchError` where it was measured for another model than `model`, or not on `backend`
        (``cpu``, ``torch``, or ``auto`` for either)."""
        if plain_name(self.model) != plain_name(model):
            raise PolicyMismatchError(
                f"these timings are of {plain_name(self.model)}, not of {plain_name(model)}; run solm bench"
            )
        if backend not in ("auto", self.backend.partition(" ")[0]):
            raise PolicyMismatchError(
                f"these timings are of {self.backend}, not of {backend}; choose their backend, or run solm bench"
            )


def machine(backend: str, threads: int, processor: str = "") -> str:
    """Such as ``cpu int8, 2 threads of AMD EPYC``."""
    return f"{backend}, {counted(threads, 'thread')}" + (f" of {processor}" if processor else "")


def read_timings(path: Path) -> StepTimings:
    """The timings in a file; raises `DamagedFileError` for anything that is not one."""
    return read_model(path, StepTimings)
