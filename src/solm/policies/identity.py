"""Which base model a policy belongs to."""

import numpy as np
from pydantic import BaseModel, ConfigDict

from solm.core.errors import PolicyMismatchError


class BaseIdentity(BaseModel):
    """Which base model a policy belongs to. `sample` holds some weights of its embedding, compared with a tolerance:
    dtype and quantisation may differ, the model may not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    family: str
    hidden: int
    layers: int
    vocabulary: int
    sample: tuple[float, ...]

    def check(self, other: "BaseIdentity") -> None:
        """Raises `PolicyMismatchError` unless `other` is the same base model."""
        for field in ("family", "hidden", "layers", "vocabulary"):
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine != theirs:
                raise PolicyMismatchError(
                    f"this policy belongs to {self.name!r} ({field} {mine}); the model given has {field} {theirs}"
                )
        ours, theirs = np.array(self.sample), np.array(other.sample)
        if ours.shape != theirs.shape or abs(ours - theirs).max() > 0.05 * abs(ours).max():
            raise PolicyMismatchError(
                f"this policy belongs to {self.name!r}; the model given has the same shapes but other weights"
            )
