"""Where the tokens of a batch lie in the KV cache during one forward pass.

N = S·K rows: K forks of each of S sequences. The first `base` tokens of a sequence lie once in its prefix; the rest
lie in the row's own buffer. A session that was never forked has base 0 and no prefix.
"""

from dataclasses import dataclass, field, replace

import torch


@dataclass(frozen=True)
class Layout:
    """positions: [N, Q] int64 of the pass's tokens; base: [N] int64, a multiple of the page size; prefix_length,
    own_length: tokens held by the prefix and own buffers (the longest row's), the pass's own tokens included;
    uniform_base: whether all rows have the same base."""

    sequences: int
    forks: int
    positions: torch.Tensor
    base: torch.Tensor
    prefix_length: int
    own_length: int
    uniform_base: bool
    candidates: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    _masks: dict[int | None, tuple[torch.Tensor | None, torch.Tensor]] = field(default_factory=dict)

    def to(self, device: torch.device) -> "Layout":
        """The layout with its tensors on `device`."""
        return replace(self, positions=self.positions.to(device), base=self.base.to(device), candidates={}, _masks={})

    def spread(self, rows: torch.Tensor) -> torch.Tensor:
        """[N, Q, ...] to [S, 1, K, Q, ...], which broadcasts over KV heads."""
        return rows.unflatten(0, (self.sequences, self.forks))[:, None]

    def spread_heads(self, counts: torch.Tensor) -> torch.Tensor:
        """[N, Q], or [H, N, Q] of H heads (or 1 for all), to [S, H, K, Q]."""
        if counts.ndim == 2:
            return self.spread(counts)
        return counts.unflatten(1, (self.sequences, self.forks)).transpose(0, 1)

    @property
    def prefix_positions(self) -> torch.Tensor:
        """[P] int64."""
        return torch.arange(self.prefix_length, device=self.positions.device)

    @property
    def own_positions(self) -> torch.Tensor:
        """Position of each own slot: [S, 1, K, 1, T] int64."""
        slots = torch.arange(self.own_length, device=self.positions.device)
        return self.spread(self.base[:, None, None] + slots)

    def visible(self, sliding_window: int | None) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Causal (and sliding) masks over the prefix [S, 1, K, Q, P] (None: all) and own slots [S, 1, K, Q, T]."""
        if sliding_window not in self._masks:
            query = self.spread(self.positions)[..., None]
            prefix, own = self.prefix_positions, self.own_positions
            see_prefix = None
            if self.prefix_length and not self.uniform_base:
                see_prefix = prefix < self.spread(self.base[:, None, None])
            see_own = own <= query
            if sliding_window is not None:
                near = prefix > query - sliding_window
                see_prefix = near if see_prefix is None else see_prefix & near
                see_own = see_own & (own > query - sliding_window)
            self._masks[sliding_window] = (see_prefix, see_own)
        return self._masks[sliding_window]
