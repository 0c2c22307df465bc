"""Which axes of a model can be controlled, whoever runs it."""

from dataclasses import dataclass, field

from solm.core.actions import AXES
from solm.core.cost import ModelShapes
from solm.core.errors import UnsupportedModelError


@dataclass(frozen=True)
class Capability:
    """What works on a model; `reasons` says, by axis, why one does not, and under ``projections`` why inputs of
    attention's projections cannot be dropped. sliding: numbers of the layers with a sliding
    window, on which the attention axis does not act."""

    family: str
    tested: bool
    shapes: ModelShapes | None
    reasons: dict[str, str] = field(default_factory=dict)
    sliding: tuple[int, ...] = ()

    @property
    def axes(self) -> dict[str, bool]:
        """By axis, whether it can be controlled."""
        return {axis: axis not in self.reasons for axis in AXES}

    def require(self, axis: str) -> None:
        """Raises `UnsupportedModelError` where `axis`, or what else `reasons` names, cannot be controlled."""
        if axis in self.reasons:
            what = f"the {axis} axis is" if axis in AXES else f"dropping inputs of attention's {axis} is"
            raise UnsupportedModelError(f"{what} not supported on {self.family!r}: {self.reasons[axis]}")
