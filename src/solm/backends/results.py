"""What is asked of a pass and what it answers: known schedules, results, and scores of known tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from solm.core.arrays import Array, as_tensor

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SplitSchedule:
    """A known schedule that changes inside the pass: the layers before `layer` follow `before`, the others `after`.

    before, after: [N, Q, 3] float64, numbers (attention share, MLP share, bits). The result then holds the residual
    stream that enters `layer`.
    """

    layer: int
    before: Array
    after: Array

    def __getitem__(self, place: Any) -> "SplitSchedule":
        """The part at a place of its arrays, such as a stretch of steps."""
        return SplitSchedule(self.layer, self.before[place], self.after[place])


Schedule = Union[np.ndarray, "torch.Tensor", SplitSchedule]
"""A known schedule: [N, Q, 3] float64 for all layers, or one that changes inside the pass."""


@dataclass(frozen=True)
class Split:
    """A schedule that changes inside a pass: `choose` gives keep [N, Q, 3] of the layers from `layer` on, from the
    residual stream [N, Q, H] that enters it, a tensor."""

    layer: int
    choose: "Callable[[torch.Tensor], Array]"


@dataclass(frozen=True)
class Result:
    """What processing Q tokens of N rows gave.

    logits: [N, Q, V] after every token, or [N, L, V] after those that were asked for. hidden: [N, Q or L, H], the input
    of the output head. realised: [N, Q, 3] float64, the shares that the steps realised. controllable: [N, Q, 3] bool,
    the axes on which they could be controlled; on others they were dense and nothing was counted. actions: [N, Q]
    int64, indices in the space of the row's policy; None under a known schedule. stream: [N, Q, H], the residual stream
    that enters the layer of a `SplitSchedule`; None otherwise.
    """

    logits: Any
    hidden: Any
    realised: Any
    controllable: Any
    actions: Any = None
    stream: Any = None

    def tensors(self) -> "Result":
        """The same as tensors, which share the arrays' memory."""
        return Result(**{name: None if values is None else as_tensor(values) for name, values in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Scored(Result):
    """The result of known next tokens, in tensors, with their log-probabilities [N, Q] float32; logits only where asked
    for, else None.

    divergences: [N, Q] float32, KL in nats from the reference's predictions to these; None without a reference.
    """

    log_probabilities: "torch.Tensor"
    divergences: "torch.Tensor | None" = None

    @classmethod
    def of(
        cls,
        result: Result,
        following: "torch.Tensor",
        reference: "torch.Tensor | None" = None,
        keep_logits: bool = False,
    ) -> "Scored":
        """What `result` says of the tokens that follow [N, Q]. reference, keep_logits: as for `Session.score`."""
        from solm.backends.logits import divergences, log_probabilities

        result = result.tensors()
        known: dict[str, Any] = vars(result) | {"logits": result.logits if keep_logits else None}
        apart = None if reference is None else divergences(result.logits, reference)
        return cls(**known, log_probabilities=log_probabilities(result.logits, following), divergences=apart)


def joined(parts: Sequence[Scored]) -> Scored:
    """Scores of consecutive stretches of the same rows as one."""
    import torch

    stretches = {name: [getattr(part, name) for part in parts] for name in vars(parts[0])}
    whole: dict[str, Any] = {
        name: None if some[0] is None else torch.cat(some, 1) if some[1:] else some[0]
        for name, some in stretches.items()
    }
    return Scored(**whole)
