"""Which base model a policy belongs to: its architecture and a sample of its weights."""

import numpy as np
from pydantic import BaseModel

from solm.core.errors import PolicyMismatchError

FAMILIES_ALIKE = {"mistral": "llama"}
"""Families by the name that GGUF files have for them as well."""
_BLOCK = 16
"""Neighbouring weights that every type of a GGUF file puts on one grid."""
_TIMES_ROUNDING = 1.5
"""Distance up to which two samples are of one model, over what rounding explains. Measured on two models and six
types, it is 0.5 to 1.1 times that."""
_NORMS_ROUNDING = 0.004
"""The same of norms, relative: bfloat16 rounds to half of it at most."""


class WeightSample(BaseModel, frozen=True, extra="forbid"):
    """Weights from everywhere in a model, in pieces of `_BLOCK` neighbours. embedding: of some tokens' input
    embeddings; mlp: of down projections; norms: of layers, which no file quantises. Empty where it cannot be read."""

    embedding: tuple[float, ...] = ()
    mlp: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()

    @classmethod
    def of(cls, embedding: np.ndarray, mlp: np.ndarray, norms: np.ndarray) -> "WeightSample":
        """From arrays of any shape, rounded to five digits, so that neighbours on a grid stay on it."""
        return cls(embedding=_digits(embedding), mlp=_digits(mlp), norms=_digits(norms))

    def difference(self, other: "WeightSample") -> str | None:
        """Where and by how much `other` is further away than rounding explains, in words; None if it is not."""
        for what in ("norms", "embedding", "mlp"):
            mine, theirs = np.array(getattr(self, what)), np.array(getattr(other, what))
            if not len(mine) or not len(theirs):
                continue
            known = _NORMS_ROUNDING
            if what != "norms":
                known = _TIMES_ROUNDING * float(np.hypot(rounding(mine), rounding(theirs)))
            found = distance(mine, theirs)
            if not found <= known:
                name = {"norms": "norms", "embedding": "embeddings", "mlp": "MLP weights"}[what]
                return f"its {name} differ by {found:.1%}, of which rounding explains at most {known:.1%}"
        return None


class BaseIdentity(BaseModel, frozen=True, extra="forbid"):
    """Which base model a policy belongs to. weights: compared as far as dtype and quantisation leave them alike."""

    name: str
    family: str
    hidden: int
    layers: int
    vocabulary: int
    weights: WeightSample = WeightSample()

    def difference_of_shape(self, other: "BaseIdentity") -> str | None:
        """The first part of the architecture in which `other` differs, in words; None where it does not."""
        for field in ("family", "hidden", "layers", "vocabulary"):
            mine, theirs = getattr(self, field), getattr(other, field)
            if FAMILIES_ALIKE.get(mine, mine) != FAMILIES_ALIKE.get(theirs, theirs):
                return f"({field} {mine}); the model given has {field} {theirs}"
        return None

    def check(self, other: "BaseIdentity") -> None:
        """Raises `PolicyMismatchError` unless `other` is the same base model, whatever its weights are rounded to."""
        reason = self.difference_of_shape(other)
        if reason is not None:
            raise PolicyMismatchError(f"this policy belongs to {self.name!r} {reason}")
        reason = self.weights.difference(other.weights)
        if reason is not None:
            raise PolicyMismatchError(
                f"this policy belongs to {self.name!r}; the model given has the same shapes but other weights: {reason}"
            )


def distance(mine: np.ndarray, theirs: np.ndarray) -> float:
    """How far two samples are apart, over the root mean square of the larger; infinite for other numbers of them."""
    if mine.shape != theirs.shape:
        return float("inf")
    scale = max(_rms(mine), _rms(theirs))
    return _rms(mine - theirs) / scale if scale else 0.0


def rounding(values: np.ndarray) -> float:
    """What quantisation did to values [n * _BLOCK], relative to their root mean square, as they show it themselves.

    The step of a block's grid is about the smallest gap between its values; rounding to it makes an error of a twelfth
    of its square. Within a tenth of the error for 4 and 5 bits, twice it for 8 bits, 0.005 to 0.009 for floats.
    """
    gaps = np.diff(np.sort(values.reshape(-1, _BLOCK), axis=1), axis=1)
    steps = np.where(gaps > 0, gaps, np.inf).min(axis=1)
    steps = np.where(np.isfinite(steps), steps, 0.0)  # of blocks of one value
    scale = _rms(values)
    return _rms(steps) / np.sqrt(12) / scale if scale else 0.0


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0


def _digits(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.5g}") for value in values.ravel().tolist())
