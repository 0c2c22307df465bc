"""`Session` on the compiled engine: prefill by the stock model, every step after it compiled."""

import numpy as np
import torch

from solm.backends.cpu.buffers import Frame, Pass
from solm.backends.cpu.engine import Cache, Engine, check_bits
from solm.backends.cpu.threads import one_torch_thread
from solm.backends.passes import Extended, Turn
from solm.backends.torch.cache import PagedCache
from solm.backends.torch.hooks import ModelControl
from solm.backends.torch.session import Session
from solm.core.budget import Ledger
from solm.core.errors import DataError
from solm.core.sparsity import SparsityConfig

_SPARE = 64  # tokens of room that a cache has beyond what was asked for


class CpuSession(Session):
    """The same rows, ledger and calls; a step computes what its plan keeps and nothing else.

    Rows walk through the weights together, up to 16 at once; forks share whole pages with their parent. A step leaves
    its books and its hidden state until somebody asks for them: while Python runs, no weight is read.
    """

    def __init__(self, control: ModelControl, sparsity: SparsityConfig, engine: Engine, capacity: int = 0):
        check_bits(sparsity, engine.precision)
        self.frame: Frame | None = None  # of the last step, as long as rows keep their caches
        self.mark = 0
        """Grows with every pass and with every change of the ledger."""
        self._stream: np.ndarray | None = None  # of the last pass [N, Q, H], until its hidden state is taken
        self.held: np.ndarray = np.zeros(0, dtype=np.int64)
        """`lengths`, as numbers that a step can do without torch."""
        super().__init__(control, sparsity, capacity)
        self.engine, self.capacity = engine, capacity
        self._caches: list[Cache] = []
        self.dtype = control.model.dtype
        self._prefilling = False

    @property
    def ledger(self) -> Ledger:
        self._settle()
        return self._ledger

    @ledger.setter
    def ledger(self, ledger: Ledger) -> None:
        self._ledger, self.mark = ledger, self.mark + 1
        if self.frame is not None:
            self.frame.clear_books()

    def _settle(self) -> None:
        """Take into the ledger what the frame has booked."""
        frame = self.frame
        if frame is not None and frame.booked:
            spent, steps = torch.from_numpy(frame.spent.copy()), frame.booked
            self.ledger = Ledger(self._ledger.spent + spent, self._ledger.steps + steps)

    @property
    def lengths(self) -> torch.Tensor:
        return torch.from_numpy(self.held)

    @lengths.setter
    def lengths(self, lengths: torch.Tensor) -> None:
        self.held = lengths.numpy()

    @property
    def rows(self) -> int:
        return len(self.held)

    @property
    def realised(self) -> torch.Tensor:
        frame = self.frame
        if frame is None:
            return self._realised
        return torch.from_numpy(frame.realised[frame.shape[1] - 1 :: frame.shape[1]].copy())

    @property
    def hidden(self) -> torch.Tensor:
        if self._stream is not None:
            self.hidden = torch.from_numpy(self._stream[:, -1].copy()).to(self.dtype)
        return self._hidden

    @hidden.setter
    def hidden(self, hidden: torch.Tensor) -> None:
        self._hidden, self._stream = hidden, None

    def _leave_frame(self) -> None:
        """Take out of the frame what may be asked for after it."""
        self._settle()
        self.hidden = self.hidden.clone()

    def prefill(
        self, tokens: torch.Tensor, lengths: torch.Tensor | None = None, every_logit: bool = False
    ) -> torch.Tensor:
        """Also refuses, with `DataError`, to go on after a step: what the engine appended, the stock model lacks."""
        before = int(self.lengths.max()) if self.caches else 0
        if self.caches and self.cache.layers[0].length != before:
            raise DataError("the cpu backend prefills before the first step alone")
        logits = self._stock_prefill(tokens, lengths, every_logit)
        self._fill(before)
        return logits

    @property
    def caches(self) -> list[Cache]:
        """One for every row; to be replaced as a whole."""
        return self._caches

    @caches.setter
    def caches(self, caches: list[Cache]) -> None:
        self._leave_frame()
        self._caches, self.frame = caches, None

    def reframe(self, rows: int, count: int) -> Frame:
        """A frame for passes of another shape."""
        self._leave_frame()
        self.frame = Frame(self.engine, self.sparsity, self.caches, rows, count)
        return self.frame

    def prepare(self, longest: int) -> None:
        """Make room for rows of up to `longest` tokens."""
        if not self._caches:
            self._fill(0)
        self._reserve(longest)

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

    def fork(self, forks: int, capacity: int = 0) -> "Session":
        self._leave_frame()
        return super().fork(forks, capacity)

    def copy(self, length: int, capacity: int = 0) -> "Session":
        self._leave_frame()
        child = super().copy(length, capacity)
        assert isinstance(child, CpuSession)
        child.capacity, child.caches = capacity, []  # filled when they are needed
        return child

    def _take_in(self, other: Session) -> None:
        assert isinstance(other, CpuSession)
        for session in (self, other):
            if not session.caches:
                session._fill(0)
        self.caches = self.caches + other.caches
        self.cache = PagedCache([])  # the stock model's keys were needed for the prefill alone

    def _let_go(self, row: int) -> None:
        caches = self.caches[:-1]
        if row < len(caches):
            caches[row] = self.caches[-1]
        self.caches = caches

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
        if all(cache.capacity >= longest for cache in self._caches):
            return
        self.caches = [
            cache if cache.capacity >= longest else Cache(self.engine, longest + longest // 2, cache, int(length))
            for cache, length in zip(self.caches, self.lengths, strict=True)
        ]

    def step(self, tokens: torch.Tensor, keep: torch.Tensor | None = None, turn: Turn | None = None) -> torch.Tensor:
        if turn is not None:
            return super().step(tokens, keep, turn)
        found = Pass(self, tokens, 1, keep)
        found.run(0, self.engine.sizes.layers)
        self._take_down(found)
        return found.logits

    def extend(
        self,
        tokens: torch.Tensor,
        keep: torch.Tensor | None = None,
        turn: Turn | None = None,
        keep_logits: torch.Tensor | None = None,
    ) -> Extended:
        found = Pass(self, tokens, tokens.shape[1], keep)
        layers = self.engine.sizes.layers
        if turn is None:
            found.run(0, layers)
        else:
            if turn.layer:
                found.run(0, turn.layer)
            else:
                found.frame.stream[:] = self.embed(tokens).detach().float().numpy()
                found.frame.realised.fill(0)
            before = found.frame.realised.copy()
            with torch.no_grad(), one_torch_thread():
                keep = turn.choose(torch.from_numpy(found.frame.stream.copy()))
            found.frame.set_keep(keep)
            found.run(turn.layer, layers)
            found.frame.realised += before
        return self._book(found, keep_logits)

    def decide(
        self, tokens: torch.Tensor, rows: np.ndarray, keep: torch.Tensor | None = None
    ) -> tuple[Extended, torch.Tensor]:
        """Process tokens [N, Q] while the engine decides for the rows [N] of dtype `ROW` that have a decider, and books
        them there; the others follow keep [N, Q, 3]. Also the actions taken [N, Q], 0 for those others."""
        found = Pass(self, tokens, tokens.shape[1], keep)
        found.run(0, self.engine.sizes.layers, rows)
        return self._book(found, None), torch.from_numpy(found.frame.actions.astype(np.int64))

    def decide_step(self, tokens: torch.Tensor, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for one token a row, tokens [N], all with a decider: logits [N, V] and the actions taken [N]."""
        found = Pass(self, tokens, 1, None)
        found.run(0, self.engine.sizes.layers, rows)
        self._take_down(found)
        return found.logits, torch.from_numpy(found.frame.actions[:, 0].astype(np.int64))

    def _book(self, found: Pass, keep_logits: torch.Tensor | None) -> Extended:
        frame = found.frame
        rows, count = frame.shape
        self._take_down(found)
        hidden, logits = torch.from_numpy(frame.stream.copy()), found.logits.view(rows, count, -1)
        if keep_logits is not None:
            index = keep_logits[..., None]
            hidden, logits = (x.gather(1, index.expand(-1, -1, x.shape[-1])) for x in (hidden, logits))
        controllable = torch.from_numpy(frame.places >= frame.always_read)
        realised = torch.from_numpy(frame.realised.reshape(rows, count, 3).copy())
        return Extended(logits, hidden, realised, controllable)

    def _take_down(self, found: Pass) -> None:
        """Books, hidden state and length after a pass."""
        frame = found.frame
        rows, count = frame.shape
        if count == 1 and found.shortest >= frame.always_read:
            frame.spent += frame.realised
            frame.booked += 1
            self.mark += 1
        else:
            controllable = frame.places >= frame.always_read
            spent = (frame.realised.reshape(rows, count, 3) * controllable[..., None]).sum(1)
            ledger, steps = self.ledger, controllable.sum(1)
            self.ledger = Ledger(ledger.spent + torch.from_numpy(spent), ledger.steps + torch.from_numpy(steps))
        self._stream = frame.stream
        self.held = found.lengths + count
