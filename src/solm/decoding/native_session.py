"""`Session` on the native engine: prefill by the stock model, every step after it compiled."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from solm.decoding.session import Session
from solm.errors import DataError
from solm.models.cache import PagedCache
from solm.models.controller import ModelControl
from solm.native.engine import Cache, Engine
from solm.ops.plan import Plan
from solm.semantics import Semantics

_SPARE = 64  # tokens of room that a cache has beyond what was asked for


class NativeSession(Session):
    """The same rows, ledger and calls; a step computes what its plan keeps and nothing else.

    Rows are processed one after the other, forks copy what their parent holds.
    """

    def __init__(self, control: ModelControl, semantics: Semantics, engine: Engine, capacity: int = 0):
        super().__init__(control, semantics, capacity)
        self.engine, self.capacity = engine, capacity
        self.caches: list[Cache] = []
        self._prefilling = False

    def prefill(
        self, tokens: torch.Tensor, lengths: torch.Tensor | None = None, every_logit: bool = False
    ) -> torch.Tensor:
        """Also refuses, with `DataError`, to go on after a step: what the engine appended, the stock model lacks."""
        before = int(self.lengths.max()) if self.caches else 0
        if self.caches and self.cache.layers[0].length != before:
            raise DataError("the native backend prefills before the first step alone")
        logits = self._stock_prefill(tokens, lengths, every_logit)
        self._fill(before)
        return logits

    def _fill(self, before: int) -> None:
        """Give the engine the stock model's keys and values from token `before` on."""
        if not self.caches:
            self.caches = [Cache(self.engine, max(self.capacity, int(n)) + _SPARE) for n in self.lengths]
        self._reserve(int(self.lengths.max()))
        for index, layer in enumerate(self.cache.layers):
            for row, cache in enumerate(self.caches):
                new = slice(before, int(self.lengths[row]))
                cache.fill(index, before, layer.keys[row, :, 0, new], layer.values[row, :, 0, new])

    def _stock_prefill(self, tokens: torch.Tensor, lengths: torch.Tensor | None, every_logit: bool) -> torch.Tensor:
        self._prefilling = True
        try:
            return super().prefill(tokens, lengths, every_logit)
        finally:
            self._prefilling = False

    def copy(self, length: int, capacity: int = 0) -> "Session":
        child = super().copy(length, capacity)
        assert isinstance(child, NativeSession)
        child.capacity, child.caches = capacity, []  # filled when they are needed
        return child

    def _take_in(self, other: Session) -> None:
        assert isinstance(other, NativeSession)
        for session in (self, other):
            if not session.caches:
                session._fill(0)
        self.caches += other.caches
        self.cache = PagedCache([])  # the stock model's keys were needed for the prefill alone

    def _let_go(self, row: int) -> None:
        self.caches[row] = self.caches[-1]
        self.caches.pop()

    def _branch(self, forks: int, capacity: int = 0) -> None:
        if self._prefilling:  # padded rows need no copy here: every row has a cache of its own
            return
        room = capacity + _SPARE
        self.caches = [
            Cache(self.engine, int(length) + room, cache, int(length))
            for cache, length in zip(self.caches, self.lengths, strict=True) for _ in range(forks)
        ]  # fmt: skip
        self._spread(forks, self.base)

    def _forget(self, own: torch.Tensor) -> None:
        """Nothing to do: the engine reads no further than a row's length."""

    def _reserve(self, longest: int) -> None:
        for row, cache in enumerate(self.caches):
            if cache.capacity < longest:
                self.caches[row] = Cache(self.engine, longest + longest // 2, cache, int(self.lengths[row]))

    def _forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        keep_logits: int | torch.Tensor,
        plan: Plan | None = None,
        turn: int | None = None,
        choose: Callable[[torch.Tensor], Plan] | None = None,
    ) -> torch.Tensor:
        if plan is None:
            return super()._forward(tokens, positions, keep_logits)
        rows, count = tokens.shape
        sizes = self.engine.sizes
        if int(tokens.min()) < 0 or int(tokens.max()) >= sizes.vocabulary:
            raise DataError(f"token ids must be in [0, {sizes.vocabulary - 1}], got {tokens.flatten().tolist()[:8]}")
        if not self.caches:
            self._fill(0)
        self._reserve(int(positions.max()) + 1)
        stream = torch.empty(rows * count, sizes.hidden)
        logits = torch.empty(rows * count, sizes.vocabulary)
        caches = (ctypes.c_void_p * (rows * count))(*(cache.handle for cache in self.caches for _ in range(count)))
        ids, places = (values.to(torch.int32).contiguous() for values in (tokens, positions))

        def run(plan: Plan, first: int, last: int) -> None:
            plans = self._plans(plan)
            self.engine.library.solm_run(
                self.engine.handle, rows * count, caches, ids.data_ptr(), places.data_ptr(), plans.data_ptr(), first,
                last, stream.data_ptr(), logits.data_ptr(),
            )  # fmt: skip

        if turn is not None and choose is not None:
            if turn:
                run(plan, 0, turn)
            else:
                stream = self.embed(tokens).float().view(rows * count, -1).contiguous()
            with _one_torch_thread():
                plan = choose(stream.view(rows, count, -1).to(self.control.model.dtype, copy=True))
            run(plan, turn, sizes.layers)
        else:
            run(plan, 0, sizes.layers)
        hidden, shown = stream.view(rows, count, -1), logits.view(rows, count, -1)
        if isinstance(keep_logits, torch.Tensor):
            index = keep_logits[..., None]
            hidden, shown = (x.gather(1, index.expand(-1, -1, x.shape[-1])) for x in (hidden, shown))
        self.control._hidden = hidden.to(self.control.model.dtype)
        return shown

    def _plans(self, plan: Plan) -> torch.Tensor:
        """The engine's plan of every step: [N, Q, 8] int32."""
        sizes, semantics = self.engine.sizes, self.semantics
        window, pages = plan.kv.window_start, plan.kv.pages
        site = semantics.mlp_site
        whole = torch.ones_like(window)
        inputs = plan.channels(sizes.hidden)[..., 0] if "input" in site else whole * sizes.hidden
        hiddens = plan.channels(sizes.intermediate)[..., 0] if "hidden" in site else whole * sizes.intermediate
        parts = (
            inputs, hiddens, plan.bits[..., 0], whole * (semantics.bits_group or 0), plan.keep[..., 0] < 1,
            whole * semantics.sinks, window, pages,
        )  # fmt: skip
        return torch.stack([part.to(torch.int32) for part in parts], -1).contiguous()


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """The engine's threads wait in a loop for the layers to go on, and so do OpenMP's for the next operation: a small
    network on two of them would make a step of 3 ms one of 9."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
