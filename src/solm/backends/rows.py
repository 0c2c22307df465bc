"""Rows as a policy's bookkeeping sees them."""

import torch

from solm.backends.torch.hooks import ModelControl
from solm.core.actions import ActionSpace
from solm.core.budget import Ledger
from solm.core.shares import axis_levels
from solm.core.sparsity import SparsityConfig


class Rows:
    """What a decision about the next step of N rows may depend on, the model's states apart."""

    control: ModelControl
    sparsity: SparsityConfig
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
        return self.kv_length > self.sparsity.always_read

    def levels(self, space: ActionSpace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Per axis the share every level would realise at the next step: [N, levels] each."""
        return axis_levels(space, self.kv_length, self.sparsity, self.control.shapes)


class SomeRows(Rows):
    """Some rows of a session, index [n], as if `ledger` were what they have spent."""

    def __init__(self, session: Rows, index: torch.Tensor, ledger: Ledger):
        self.control, self.sparsity, self.device = session.control, session.sparsity, session.device
        self.lengths, self.ledger = session.lengths[index], ledger
