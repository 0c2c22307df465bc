"""What is asked of a pass and what it answers: known schedules, results, and scores of known tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar, Union

import numpy as np

from solm.core.arrays import Array, as_tensor, is_tensor

if TYPE_CHECKING:
    import torch

_Part = TypeVar("_Part", "Result", "Scored")


@dataclass(frozen=True)
class SplitSchedule:
    """A known schedule that changes inside the pass: the layers before `layer` follow `before`, the others `after`.

    before, after: [N, Q, 3] float64, numbers (attention share, MLP share, bits). The result then holds the residual
    stream that enters `layer`.
    """

    layer: int
    before: Array
    after: Array


Schedule = Union[np.ndarray, "torch.Tensor", SplitSchedule]
"""A known schedule: [N, Q, 3] float64 for all layers, or one that changes inside the pass."""


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
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: as_tensor(values) for name, values in known.items() if values is not None})


@dataclass(frozen=True)
class Scored:
    """The same for known next tokens, with their log-probabilities [N, Q] float32; logits only where asked for.

    divergences: [N, Q] float32, KL in nats from the reference's predictions to these; None without a reference.
    """

    log_probabilities: "torch.Tensor"
    hidden: "torch.Tensor"
    realised: "torch.Tensor"
    controllable: "torch.Tensor"
    actions: "torch.Tensor | None" = None
    stream: "torch.Tensor | None" = None
    divergences: "torch.Tensor | None" = None
    logits: "torch.Tensor | None" = None

    @classmethod
    def of(
        cls,
        result: Result,
        following: "torch.Tensor",
        reference: "torch.Tensor | None" = None,
        keep_logits: bool = False,
    ) -> "Scored":
        """What `result` says of the tokens that follow [N, Q]. reference, keep_logits: as for `Session.score`."""

        from solm.backends.logits import divergences_of_forks, log_probabilities

        result = result.tensors()
        known = log_probabilities(result.logits, following)
        rest = (result.hidden, result.realised, result.controllable, result.actions, result.stream)
        apart = None if reference is None else divergences_of_forks(result.logits, reference)
        return cls(known, *rest, apart, result.logits if keep_logits else None)


def joined(parts: Sequence[_Part]) -> _Part:
    """Results of consecutive stretches of the same rows as one."""
    if len(parts) == 1:
        return parts[0]
    found: dict[str, Any] = {}
    for name in (field.name for field in fields(parts[0])):
        values = [getattr(part, name) for part in parts]
        found[name] = None if values[0] is None else _cat(values)
    return type(parts[0])(**found)


def _cat(values: list[Any]) -> Any:
    if not is_tensor(values[0]):
        return np.concatenate(values, 1)
    import torch

    return torch.cat(values, 1)
