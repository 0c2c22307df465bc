"""Sessions of the torch backend: rows of a transformers model, every action simulated exactly."""

from collections.abc import Callable

import numpy as np
import torch

from solm.backends import budgets
from solm.backends.results import Result, Split
from solm.backends.session import Session, check_cut
from solm.backends.torch.cache import PagedCache
from solm.backends.torch.hooks import HookedModel
from solm.backends.torch.plan import ActivePass, Layout, Plan, activate, make_plan, on_device
from solm.core.actions import DENSE
from solm.core.arrays import Array, as_numpy, as_tensor
from solm.core.errors import DataError, UnsupportedModelError
from solm.core.sparsity import SparsityConfig


class TorchSession(Session):
    """N = S·K rows: K forks of each of S sequences. See `solm.backends.session.Session`.

    Until attention is controllable (KV length above sinks + window + 1) it is dense, whatever decides, and not counted
    in the budget; the other axes are controllable from the first step on.
    """

    def __init__(self, model: HookedModel, sparsity: SparsityConfig, capacity: int = 0):
        """capacity: tokens to reserve room for; more are taken, at the price of a copy."""
        if sparsity.projection_part:
            model.capability.require("projections")
        if sparsity.mlp_site == "experts" and model.shapes.experts_used == 1:
            raise UnsupportedModelError("a share of the experts needs a mixture of them")
        super().__init__(sparsity, model.shapes, model.context)
        self.model = model
        self._cache = PagedCache.empty(model.model.config, sparsity.page_size, capacity)
        self._sequences, self._forks = 0, 1
        self._lengths = torch.zeros(0, dtype=torch.int64)
        self._base = torch.zeros(0, dtype=torch.int64)  # [N] tokens of every row that lie in the shared prefix
        self._shared = 0  # the longest of those

    @property
    def _counts(self) -> np.ndarray:
        return self._lengths.numpy()

    def _ours(self, values: Array) -> torch.Tensor:
        return as_tensor(values)

    @torch.no_grad()
    def prefill(self, tokens: Array, lengths: Array | None = None, every_logit: bool = False) -> torch.Tensor:
        """As `Session.prefill`; through the stock model's own path."""
        ids = as_tensor(tokens)
        if self._forks > 1 or self._shared or (self.rows and len(ids) != self.rows):
            raise DataError("prefill continues only rows that were not forked or padded")
        counts = torch.full((len(ids),), ids.shape[1]) if lengths is None else as_tensor(lengths).cpu()
        if ids.shape[1] == 0 or int(counts.min()) < 1:
            raise DataError("nothing to prefill: every row needs at least one token")
        if not self.rows:
            self._sequences = len(ids)
            self._lengths = self._base = torch.zeros(len(ids), dtype=torch.int64)
            self._open(len(ids))
        wanted = 0 if every_logit else 1 if lengths is None else (counts - 1)[:, None]
        self._cache.write_to(None)
        logits, _ = self.model.forward(ids, self._positions(ids.shape[1]), self._cache, wanted)
        self._lengths = self._lengths + counts
        if int(self._lengths.min()) < int(self._lengths.max()):
            self._branch(1)
        return logits if every_logit else logits[:, -1]

    def read_on(self, tokens: Array, lengths: Array) -> None:
        """As `Session.read_on`: padding is read, too, and forgotten."""
        counts, before = as_tensor(lengths), self._lengths
        self.extend(tokens, keep_logits=(counts[:, None] - 1).clamp(min=0))
        self.truncate(before + counts)

    def fork(self, forks: int, capacity: int = 0, sparsity: SparsityConfig | None = None) -> "TorchSession":
        """As `Session.fork`. Rows that own nothing but a whole sequence share its whole pages; rows that are forks
        already keep sharing their prefix, and what they decoded since is copied."""
        child = self._child(sparsity or self._sparsity)
        child._branch(forks, capacity)
        return child

    def copy(self, length: int, capacity: int = 0, sparsity: SparsityConfig | None = None) -> "TorchSession":
        if self.rows != 1 or self._shared or not 0 < length <= int(self._lengths[0]):
            raise DataError(f"cannot copy {length} tokens of {self.rows} rows with {self._lengths.tolist()}")
        child = self._child(sparsity or self._sparsity)
        child._cache = self._cache.of_each(lambda layer: layer.copy(length, capacity))
        child._lengths = torch.tensor([length])
        child._open(1)
        return child

    def copy_bytes(self, length: int, shared: int = 0) -> int:
        """As `Session.copy_bytes`: nothing is shared."""
        return self._cache.token_bytes() * length

    def join(self, other: "TorchSession") -> None:
        for session in (self, other):
            if session._shared or session._forks > 1:
                raise DataError("rows that share a prefix cannot join others")
        self._append(other)
        self._sequences += other._sequences
        self._base = torch.cat([self._base, other._base])
        self._lengths = torch.cat([self._lengths, other._lengths])
        for mine, theirs in zip(self._cache.layers, other._cache.layers, strict=True):
            mine.join(theirs)
        self._forget(self._lengths)

    def leave(self, row: int) -> None:
        index = torch.arange(self.rows - 1)
        if row < len(index):
            index[row] = self.rows - 1
        self._sequences -= 1
        self._base, self._lengths = self._base[index], self._lengths[index]
        self._take(index.numpy(), self)
        for layer in self._cache.layers:
            layer.leave(row)
        if self.rows:
            self._forget(self._lengths)

    def truncate(self, lengths: Array) -> None:
        lengths = as_tensor(lengths)
        check_cut(lengths, self._lengths, self._base)
        self._lengths = lengths
        self._forget(lengths - self._base)

    @torch.no_grad()
    def _pass(
        self,
        tokens: torch.Tensor,
        keep: Array | None,
        split: Split | None = None,
        keep_logits: Array | None = None,
        exact_largest: int | np.ndarray = 0,
        decide: bool = False,
        counts: np.ndarray | None = None,
    ) -> Result:
        """As `Session._pass`; logits are always exact, policies decide in Python, and padding is read, too, and
        forgotten."""
        count = tokens.shape[1]
        positions = self._positions(count)
        kv_length = positions.numpy() + 1
        controllable = self._sparsity.controllable(kv_length)

        def planned(keep: Array) -> Plan:
            keep = np.where(controllable, as_numpy(keep), DENSE)
            return make_plan(keep, kv_length, self._sparsity, self.model.shapes)

        plan = planned(np.array(DENSE) if keep is None else keep)
        realised, choose = plan.shares.mean(0), None
        if split is not None:
            layers = self.model.shapes.layers

            def choose(hidden: torch.Tensor) -> Plan:
                nonlocal realised
                rest = planned(split.choose(hidden))
                realised = plan.realised_by(0, split.layer, layers) + rest.realised_by(split.layer, layers, layers)
                return on_device(rest, self.model.device)

        current = self._active(plan, positions, None if split is None else split.layer, choose)
        with activate(current):
            wanted = 0 if keep_logits is None else as_tensor(keep_logits)
            logits, hidden = self.model.forward(tokens, positions, self._cache, wanted)
        if current is not None and current.realised_mlp is not None:
            realised[..., 1] = current.realised_mlp
        self._lengths = self._lengths + (count if counts is None else as_tensor(counts))
        if counts is not None:
            self._forget(self._lengths - self._base)
        budgets.add(self._budgets, realised, controllable, counts)
        known = (as_tensor(values) for values in (realised, controllable, self._dense_actions(count)))
        return Result(logits, hidden, *known)

    def _child(self, sparsity: SparsityConfig) -> "TorchSession":
        """A session of the same rows with the same cache; what is mutable is the child's own."""
        child = TorchSession(self.model, sparsity)
        child._cache, child._sequences, child._forks, child._shared = (
            self._cache, self._sequences, self._forks, self._shared,
        )  # fmt: skip
        child._lengths, child._base = self._lengths, self._base
        child._take(np.arange(self.rows), self)
        return child

    def _branch(self, forks: int, capacity: int = 0) -> None:
        base = self._base
        if not self._shared and self._forks == 1:
            base = self._lengths // self._sparsity.page_size * self._sparsity.page_size
            self._shared = int(base.max())
            lengths, shared = self._lengths, self._shared
            self._cache = self._cache.of_each(lambda layer: layer.fork(forks, lengths, shared, capacity))
        else:
            self._cache = self._cache.of_each(lambda layer: layer.widen(forks, capacity))
        index = torch.arange(self.rows).repeat_interleave(forks)
        self._forks *= forks
        self._base, self._lengths = base[index], self._lengths[index]
        self._take(index.numpy(), self)

    def _forget(self, own: torch.Tensor) -> None:
        for layer in self._cache.layers:
            layer.truncate(int(own.max()), int(own.min()))

    def _positions(self, count: int) -> torch.Tensor:
        self._prepare(count)
        return self._lengths[:, None] + torch.arange(count)

    def _active(
        self, plan: Plan, positions: torch.Tensor, layer: int | None, choose: Callable[[torch.Tensor], Plan] | None
    ) -> ActivePass | None:
        """What hooks follow in a pass over positions [N, Q], from `layer` on under the plan that `choose` returns. None
        without forks and without a sparse axis: such a pass is the stock model's, bit for bit."""
        ragged, device = int(self._lengths.min()) < int(self._lengths.max()), self.model.device
        self._cache.write_to((positions - self._base[:, None]).to(device) if ragged else None)
        if not (ragged or self._shared or self._forks > 1 or layer is not None or plan.sparse):
            return None
        own = int((self._lengths - self._base).max()) + positions.shape[1]
        layout = Layout(self._sequences, self._forks, positions, self._base, self._shared, own)
        return ActivePass(on_device(plan, device), on_device(layout, device), self._cache, layer, choose)
