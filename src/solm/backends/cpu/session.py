"""`Session` on the compiled engine: prefill by the stock model, every step after it compiled."""

import numpy as np
import torch

from solm.backends.budgets import ROW_STATE
from solm.backends.cpu.call import Computed, EngineCall
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

    Rows go through the weights together, up to 16 at once; forks share whole pages with their parent.
    """

    def __init__(self, control: ModelControl, sparsity: SparsityConfig, engine: Engine, capacity: int = 0):
        check_bits(sparsity, engine.precision)
        self.mark = 0
        """Grows with every pass and with every change of the ledger."""
        self._found: Computed | None = None  # of the last pass, until its hidden state is taken
        self._call: EngineCall | None = None
        self.held: np.ndarray = np.zeros(0, dtype=np.int64)
        """`lengths`, as numbers that a step can do without torch."""
        super().__init__(control, sparsity, capacity)
        self.engine, self.capacity = engine, capacity
        self._caches: tuple[Cache, ...] = ()
        self.dtype = control.model.dtype
        self._prefilling = False

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    @ledger.setter
    def ledger(self, ledger: Ledger) -> None:
        self._ledger, self.mark = ledger, self.mark + 1

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
        return self._realised if self._found is None else torch.from_numpy(self._found.realised[:, -1].copy())

    @property
    def hidden(self) -> torch.Tensor:
        if self._found is not None:
            self._hidden = torch.from_numpy(self._found.stream[:, -1].copy()).to(self.dtype)
        return self._hidden

    @hidden.setter
    def hidden(self, hidden: torch.Tensor) -> None:
        if self._found is not None:
            self._realised = self.realised
        self._hidden, self._found = hidden, None

    def _settle(self) -> None:
        """Take out of the last pass what may be asked for after it."""
        realised = self.realised
        self.hidden, self._realised, self._call = self.hidden.clone(), realised, None

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
        return list(self._caches)

    @caches.setter
    def caches(self, caches: list[Cache]) -> None:
        self._settle()
        self._caches = tuple(caches)

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
        self._settle()
        return super().fork(forks, capacity)

    def copy(self, length: int, capacity: int = 0) -> "Session":
        self._settle()
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
        return self._run(tokens, keep, self._undecided()).logits[:, 0]

    def extend(
        self,
        tokens: torch.Tensor,
        keep: torch.Tensor | None = None,
        turn: Turn | None = None,
        keep_logits: torch.Tensor | None = None,
    ) -> Extended:
        if turn is None:
            return self._extended(self._run(tokens, keep, self._undecided()), keep_logits)
        if turn.layer:
            found = self._run(tokens, keep, self._undecided(), last=turn.layer)
            with torch.no_grad(), one_torch_thread():
                keep = turn.choose(torch.from_numpy(found.stream))
            return self._extended(self._run(tokens, keep, self._undecided(), turn.layer, before=found), keep_logits)
        with torch.no_grad(), one_torch_thread():
            keep = turn.choose(self.embed(tokens).detach().float())
        return self._extended(self._run(tokens, keep, self._undecided()), keep_logits)

    def decide(
        self, tokens: torch.Tensor, rows: np.ndarray, keep: torch.Tensor | None = None
    ) -> tuple[Extended, torch.Tensor]:
        """Process tokens [N, Q] while the engine decides for the rows [N] of dtype `ROW_STATE` that have a decider, and
        books them there; the others follow keep [N, Q, 3]. Also the actions taken [N, Q], -1 for those others."""
        found = self._run(tokens, keep, rows, decide=True)
        return self._extended(found, None), torch.from_numpy(found.actions)

    def decide_step(self, tokens: torch.Tensor, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for one token a row, tokens [N], all with a decider: logits [N, V] and the actions taken [N]."""
        found = self._run(tokens, None, rows, decide=True)
        return found.logits[:, 0], torch.from_numpy(found.actions[:, 0])

    def _undecided(self) -> np.ndarray:
        return np.zeros(self.rows, ROW_STATE)

    def _run(
        self, tokens: torch.Tensor, keep: torch.Tensor | None, states: np.ndarray, first: int = 0,
        last: int | None = None, before: Computed | None = None, decide: bool = False,
    ) -> Computed:  # fmt: skip
        count = tokens.shape[1] if tokens.dim() > 1 else 1
        longest = int(self.held.max()) + count
        self.check_length(longest)
        self.prepare(longest)
        if self._call is None:
            self._call = EngineCall(self.engine, self.sparsity)
        found = self._call.run(
            self._caches, tokens, self.held, states, keep, decide=decide, first=first, last=last, before=before,
            approximate_tail=self.approximate_tail,
        )  # fmt: skip
        if last is None:
            self._take_down(found)
        return found

    def _extended(self, found: Computed, keep_logits: torch.Tensor | None) -> Extended:
        count = found.shape[1]
        hidden, logits = torch.from_numpy(found.stream), found.logits
        if keep_logits is not None:
            index = keep_logits[..., None]
            hidden, logits = (x.gather(1, index.expand(-1, -1, x.shape[-1])) for x in (hidden, logits))
        return Extended(logits, hidden, torch.from_numpy(found.realised), self._controllable(count, count))

    def _controllable(self, count: int, back: int) -> torch.Tensor:
        return torch.from_numpy(self.held[:, None] - back + np.arange(count) >= self.sparsity.always_read)

    def _take_down(self, found: Computed) -> None:
        """Books, hidden state and length after a pass."""
        count = found.shape[1]
        controllable = self._controllable(count, 0)
        spent = (torch.from_numpy(found.realised) * controllable[..., None]).sum(1)
        self.ledger = Ledger(self.ledger.spent + spent, self.ledger.steps + controllable.sum(1))
        self._found = found
        self.held = self.held + count
