"""Rows as a policy's bookkeeping sees them."""

import torch

from solm.actions import ActionSpace
from solm.budget import Ledger
from solm.models.controller import ModelControl
from solm.ops.plan import axis_levels
from solm.semantics import Semantics


class Rows:
    """What a decision about the next step of N rows may depend on, the model's states apart."""

    control: ModelControl
    semantics: Semantics
    device: torch.device
    lengths: torch.Tensor
    """[N] tokens seen by every row, on the host."""
    ledger: Ledger

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def kv_length(self) -> torch.Tensor:
        """Keys that the next step of every row will see, its own included: [N]."""
        return self.lengths + 1

    @property
    def controllable(self) -> torch.Tensor:
        """Whether the next step of every row can be controlled: [N] bool."""
        return self.kv_length > self.semantics.always_read

    def levels(self, space: ActionSpace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Per axis the share every level would realise at the next step: [N, levels] each."""
        return axis_levels(space, self.kv_length, self.semantics, self.control.shapes)


class SomeRows(Rows):
    """Some rows of a session, index [n], as if `ledger` were what they have spent."""

    def __init__(self, session: Rows, index: torch.Tensor, ledger: Ledger):
        self.control, self.semantics, self.device = session.control, session.semantics, session.device
        self.lengths, self.ledger = session.lengths[index], ledger
