"""Sessions of the cpu backend: the torch model reads prompts, and the compiled engine runs every step after them."""

import numpy as np
import torch

from solm.backends import budgets
from solm.backends.base import BaseSession, Split, only
from solm.backends.cpu.call import Computed, EngineCall
from solm.backends.cpu.decider import decider_of
from solm.backends.cpu.engine import Cache, Engine, check_bits
from solm.backends.session import AnyPolicy, Result, check_cut, check_length
from solm.backends.threads import one_torch_thread
from solm.backends.torch.backend import TorchBackend
from solm.backends.torch.session import TorchSession
from solm.core.errors import DataError
from solm.core.sparsity import SparsityConfig
from solm.policies.priced import PricedPolicy
from solm.policies.value_policy import ValuePolicy

_SPARE = 64  # tokens of room that a cache has beyond what was asked for


class CpuSession(BaseSession):
    """N rows on the engine. See `solm.backends.session.Session`.

    Rows walk through the weights together, up to 16 at once; forks share whole pages with their parent. The engine
    decides for the policies that it knows, and counts what every step spends in the rows' budget records.
    """

    def __init__(self, reader: TorchBackend, engine: Engine, sparsity: SparsityConfig, capacity: int = 0):
        """reader: the model that reads prompts. capacity: tokens to reserve room for; more are taken when needed."""
        check_bits(sparsity, engine.precision)
        super().__init__(sparsity, reader.shapes, reader.context, reader.device)
        self.reader, self.engine = reader, engine
        self._capacity = capacity
        self._prompt: TorchSession | None = None  # what has read the prompt, until the engine has its keys and values
        self._caches: tuple[Cache, ...] = ()
        self._call = EngineCall(engine, sparsity)
        self._held = np.zeros(0, dtype=np.int64)  # tokens of every row
        self._hidden = torch.zeros(0)  # [N, H] what the output head read last, but for
        self._last: Computed | None = None  # the pass that it has not been taken from yet
        self._by_engine: frozenset[int] = frozenset()  # groups that the engine decides for
        self._all_by_engine = False

    @property
    def rows(self) -> int:
        return len(self._held)

    @property
    def lengths(self) -> torch.Tensor:
        return torch.from_numpy(self._held)

    def memory_bytes(self) -> int:
        """Bytes of keys and values, pages that are shared with other rows counted in each."""
        held = sum(cache.nbytes for cache in self._caches)
        return held if self._prompt is None else held + self._prompt.memory_bytes()

    def prefill(
        self, tokens: torch.Tensor, lengths: torch.Tensor | None = None, every_logit: bool = False
    ) -> torch.Tensor:
        """As `Session.prefill`. Also raises `DataError` after a step, as only the engine has its keys and values."""
        if self._prompt is None:
            if self.rows:
                raise DataError("the cpu backend prefills before the first step alone")
            self._prompt = self.reader.session(self._sparsity, self._capacity)
        elif len(set(self._held.tolist())) > 1:
            raise DataError("prefill continues only rows that were not forked or padded")
        logits = self._prompt.read(tokens, lengths, every_logit)
        self._held = self._prompt.lengths.numpy()
        self._hidden, self._last = self._prompt.last_hidden(torch.arange(self.rows)).float(), None
        if len(self._budgets) != self.rows:
            self._budgets = budgets.uncontrolled(self.rows)
        return logits

    def _took_over(self, policy: AnyPolicy) -> None:
        if type(policy) is ValuePolicy:  # a subclass may decide otherwise
            self._budgets["decider"] = decider_of(policy).address
        self._regroup()

    def fork(self, forks: int, capacity: int = 0, sparsity: SparsityConfig | None = None) -> "CpuSession":
        """As `Session.fork`."""
        self._fill()
        child = CpuSession(self.reader, self.engine, sparsity or self._sparsity)
        index = np.arange(self.rows).repeat(forks)
        room = capacity + _SPARE
        child._caches = tuple(
            Cache(self.engine, int(self._held[row]) + room, self._caches[row], int(self._held[row])) for row in index
        )
        child._held, child._budgets = self._held[index], self._budgets[index]
        child._hidden = self.last_hidden(torch.from_numpy(index))
        child._control = self._control.take(torch.from_numpy(index), child._sparsity, copied=True)
        child._regroup()
        return child

    def copy(self, length: int, capacity: int = 0) -> "CpuSession":
        """As `Session.copy`; also refuses rows that have stepped or were forked."""
        if self._prompt is None:
            raise DataError(f"cannot copy {length} tokens of rows that were stepped or forked")
        child = CpuSession(self.reader, self.engine, self._sparsity, capacity)
        child._prompt = self._prompt.copy(length, capacity)
        child._held, child._budgets = child._prompt.lengths.numpy(), budgets.uncontrolled(1)
        return child

    def join(self, other: "CpuSession") -> None:
        """As `Session.join`."""
        self._control.check_join(other._control)
        self._fill()
        other._fill()
        self._control.join(other._control, self.rows)
        self._hidden = torch.cat([session.last_hidden(torch.arange(session.rows)) for session in (self, other)])
        self._last = None
        self._caches = self._caches + other._caches
        self._held = np.concatenate([self._held, other._held])
        self._budgets = np.concatenate([self._budgets, other._budgets])
        self._regroup()

    def leave(self, row: int) -> None:
        """As `Session.leave`."""
        self._fill()
        index = np.arange(self.rows - 1)
        if row < len(index):
            index[row] = self.rows - 1
        self._caches = tuple(self._caches[place] for place in index)
        self._hidden = self.last_hidden(torch.from_numpy(index))
        self._held, self._budgets = self._held[index], self._budgets[index]
        self._control = self._control.take(torch.from_numpy(index), self._sparsity)
        self._regroup()

    def truncate(self, lengths: torch.Tensor) -> None:
        """As `Session.truncate`; the engine reads no further than a row's length."""
        check_cut(lengths, self.lengths, torch.zeros_like(lengths))
        self._fill()
        self._held = lengths.numpy()

    def last_hidden(self, rows: torch.Tensor) -> torch.Tensor:
        """[n, H], what the output head read after the last token of `rows` [n]."""
        if self._last is not None:
            self._hidden, self._last = torch.from_numpy(self._last.stream[:, -1].copy()), None
        return self._hidden[rows]

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Input embeddings of tokens [...]: [..., H]."""
        return self.reader.embed(tokens)

    def _regroup(self) -> None:
        """Find the groups of rows that the engine decides for: those under value policies. If another kind of policy
        decides inside the pass, too, Python decides for all."""
        decided, groups = self._budgets["decider"] != 0, self._control.groups
        known = [bool(decided[int(group.rows[0])]) for group in groups]
        inside = [isinstance(group.policy, PricedPolicy) for group in groups]
        alone = all(there for there, priced in zip(known, inside, strict=True) if priced)
        self._by_engine = frozenset(number for number, there in enumerate(known) if there and alone)
        self._all_by_engine = len(self._by_engine) == len(groups)

    @property
    def _own_groups(self) -> frozenset[int]:
        return self._by_engine

    def _pass(
        self,
        tokens: torch.Tensor,
        keep: torch.Tensor | None,
        split: Split | None = None,
        keep_logits: torch.Tensor | None = None,
        approximate_tail: bool = False,
        decide: bool = False,
    ) -> Result:
        """As `BaseSession._pass`; the engine counts what was spent."""
        count = tokens.shape[1]
        self._prepare(count)
        run, rows = self._call.run, (self._caches, tokens, self._held, self._budgets)
        if split is None:
            done = run(*rows, keep, decide=decide, approximate_tail=approximate_tail)
        else:
            before = run(*rows, keep, last=split.layer) if split.layer else None
            with torch.no_grad(), one_torch_thread():
                enters = self.embed(tokens).float() if before is None else torch.from_numpy(before.stream.copy())
                later = split.choose(enters)
            done = run(*rows, later, first=split.layer, before=before, approximate_tail=approximate_tail)
        # As few operations as can be: right after a pass each takes several times as long as usual (see `EngineCall`).
        places = self._held[:, None] if count == 1 else self._held[:, None] + np.arange(count)
        controllable = torch.from_numpy(places >= self._sparsity.always_read)
        self._held = self._held + count
        self._last = done
        actions = None
        if decide and self._all_by_engine:
            actions = torch.from_numpy(done.actions)
        elif keep is None or decide:
            actions = self._dense_actions(count)
            if decide:  # the engine gives -1 for rows that it does not decide for
                actions = torch.from_numpy(np.where(done.actions < 0, actions.numpy(), done.actions))
        found = Result(
            done.logits, torch.from_numpy(done.stream), torch.from_numpy(done.realised), controllable, actions
        )
        return found if keep_logits is None else only(found, keep_logits)

    def _prepare(self, count: int) -> None:
        """Give the engine the prompt, and rows room for `count` more tokens."""
        longest = int(self._held.max()) + count
        check_length(longest, self._context)
        self._fill()
        if all(cache.capacity >= longest for cache in self._caches):
            return
        self._caches = tuple(
            cache if cache.capacity >= longest else Cache(self.engine, longest + longest // 2, cache, int(length))
            for cache, length in zip(self._caches, self._held, strict=True)
        )

    def _fill(self) -> None:
        """Give the engine the keys and values of the prompt."""
        if self._prompt is None:
            return
        caches = [Cache(self.engine, max(self._capacity, int(length)) + _SPARE) for length in self._held]
        for index, layer in enumerate(self._prompt.cache.layers):
            for row, cache in enumerate(caches):
                read = slice(0, int(self._held[row]))
                cache.fill(index, 0, layer.keys[row, :, 0, read], layer.values[row, :, 0, read])
        self._caches, self._prompt = tuple(caches), None
