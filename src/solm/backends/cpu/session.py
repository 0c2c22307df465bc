"""Sessions of the cpu backend: rows whose prompts and steps run on the compiled engine."""

from dataclasses import replace
from typing import Any

import numpy as np

from solm.backends import budgets
from solm.backends.cpu.border import PAGE
from solm.backends.cpu.call import Cache, EngineCall, decider_of
from solm.backends.cpu.engine import Engine
from solm.backends.machine import one_torch_thread
from solm.backends.results import Result, Split
from solm.backends.session import AnyPolicy, Session, check_cut
from solm.core.arrays import Array, as_numpy, as_tensor, in_kind
from solm.core.errors import DataError, SolmError
from solm.core.sparsity import FROM_THE_START, SparsityConfig
from solm.policies.schedules import static
from solm.policies.value_policy import ValuePolicy

_SPARE = 64  # tokens of room that a cache has beyond what was asked for
_CHUNK = 256  # tokens that the engine reads in one call while a prompt is read or known tokens are scored
_TAKEN = np.empty((0, 0, 0), np.float32)  # in place of logits that have been given to the caller


class CpuSession(Session):
    """N rows on the engine. See `solm.backends.session.Session`.

    Rows walk through the weights together; forks share whole pages with their parent. The engine
    decides for the policies that it knows, and counts what every step spends in the rows' budget records.
    """

    def __init__(self, engine: Engine, sparsity: SparsityConfig, capacity: int = 0):
        """capacity: tokens to reserve room for; more are taken when needed."""
        engine.check(sparsity)
        super().__init__(sparsity, engine.shapes, engine.spec.context)
        self.engine = engine
        self._capacity, self._always_read = capacity, sparsity.always_read
        self._caches: tuple[Cache, ...] = ()
        self._call = EngineCall(engine, sparsity)
        self._held = np.zeros(0, dtype=np.int64)  # tokens of every row
        self._dense = np.zeros(0, dtype=np.int64)  # of which the first ones were read in a prefill

    @property
    def _counts(self) -> np.ndarray:
        return self._held

    def _ours(self, values: Array) -> np.ndarray:
        return values if type(values) is np.ndarray else as_numpy(values)  # the usual kind costs no call

    def copy_bytes(self, length: int, shared: int = 0) -> int:
        pages, tiles = range(shared // PAGE, -(-length // PAGE)), range(shared // PAGE**2, -(-length // PAGE**2))
        memory = self.engine.page_memory()
        return len(pages) * memory.page_bytes + len(tiles) * memory.tile_bytes

    def prefill(self, tokens: Array, lengths: Array | None = None, every_logit: bool = False) -> Any:
        """As `Session.prefill`. Rows that have stepped or are forks may go on reading, too."""
        read = self._prefill(tokens, lengths, None if every_logit else 1)
        if not every_logit:
            return in_kind(np.stack([logits[-1] for logits in read]), tokens)
        padded = np.zeros((len(read), max(map(len, read)), self.engine.sizes.vocabulary), np.float32)
        for row, logits in enumerate(read):
            padded[row, : len(logits)] = logits
        return in_kind(padded, tokens)

    def read_on(self, tokens: Array, lengths: Array) -> None:
        """As `Session.read_on`. Every row reads its own tokens alone, so that padding takes neither time nor memory."""
        self._prefill(tokens, lengths, 0)

    def _prefill(self, tokens: Array, lengths: Array | None, logits: int | None) -> list[np.ndarray]:
        """Read tokens [S, C] densely, of which lengths count as for `prefill`. Per row the logits [L, V] after no token
        (logits=0), the last one (1) or every one (None)."""
        rows, count = tokens.shape
        if not count or (self.rows and rows != self.rows):
            raise DataError(f"prefill needs [{self.rows or 'rows'}, at least 1] tokens, got {list(tokens.shape)}")
        counts = np.full(rows, count) if lengths is None else as_numpy(lengths)
        if counts.min() < 1 or counts.max() > count or len(counts) != rows:
            raise DataError(f"lengths must be {rows} numbers in [1, {count}], got {counts.tolist()}")
        held = self._held if self.rows else np.zeros(rows, dtype=np.int64)
        self._check_length(int((held + counts).max()))
        fresh = not self.rows
        if fresh:
            longest = max(self._capacity, int(counts.max()))
            self._caches = tuple(Cache(self.engine, longest + _SPARE) for _ in range(rows))
            self._held, self._dense = held, held
            self._open(rows)
        self._make_room(held + counts)
        ids = as_numpy(tokens)
        try:
            read = [self._read(row, ids[row, : counts[row]], logits) for row in range(rows)]
        except SolmError:
            if fresh:  # a session that has read nothing is bound to no number of rows
                self._caches, self._held, self._dense = (), held[:0], held[:0]
            raise
        self._dense = np.where(self._dense == held, held + counts, self._dense)
        self._held = held + counts
        return read

    def _read(self, row: int, tokens: np.ndarray, logits: int | None) -> np.ndarray:
        """Read tokens [C] of one row densely: logits [L, V] as `_prefill` has them."""
        call, state = EngineCall(self.engine, self._sparsity), budgets.uncontrolled(1)
        parts, at = [], int(self._held[row])
        end = at + len(tokens)
        while at < end:
            # Cut at the same positions wherever reading begins: few tokens at the end are computed otherwise than many,
            # in the last bits.
            count = min(end, (at // _CHUNK + 1) * _CHUNK) - at
            part, tokens = tokens[:count], tokens[count:]
            wanted = count if logits is None else logits if at + count == end else 0
            read = call.run((self._caches[row],), part[None], np.array([at]), state, logit_steps=wanted, blocks=True)
            parts.append(read.logits[0])
            at += count
        return np.concatenate(parts)

    def _scored_at_once(self, known: bool) -> int:
        from solm.backends.logits import LOGITS_AT_ONCE

        most = min(_CHUNK, LOGITS_AT_ONCE // self.engine.sizes.vocabulary)
        return min(super()._scored_at_once(known), most // max(1, self.rows))

    def _decider_of(self, policy: AnyPolicy) -> int:
        known = ValuePolicy, type(static(policy.space, self._sparsity))  # a subclass may decide otherwise
        return decider_of(self.engine, policy).address if type(policy) in known else 0  # type: ignore[arg-type]

    def fork(self, forks: int, capacity: int = 0, sparsity: SparsityConfig | None = None) -> "CpuSession":
        child = CpuSession(self.engine, sparsity or self._sparsity)
        index = np.arange(self.rows).repeat(forks)
        room = capacity + _SPARE
        child._caches = tuple(
            Cache(self.engine, int(self._held[row]) + room, self._caches[row], int(self._held[row])) for row in index
        )
        child._held, child._dense = self._held[index], self._dense[index]
        child._take(index, self)
        return child

    def copy(self, length: int, capacity: int = 0, sparsity: SparsityConfig | None = None) -> "CpuSession":
        if self.rows != 1 or not 0 < length <= self._dense[0]:
            raise DataError(f"cannot copy {length} tokens of rows that read {self._dense.tolist()} in a prefill")
        child = CpuSession(self.engine, sparsity or self._sparsity, capacity)
        child._caches = (Cache(self.engine, max(capacity, length) + _SPARE, self._caches[0], length),)
        child._held = child._dense = np.array([length])
        child._open(1)
        return child

    def join(self, other: "CpuSession") -> None:
        self._append(other)
        self._caches = self._caches + other._caches
        self._held, self._dense = (
            np.concatenate(pair) for pair in ((self._held, other._held), (self._dense, other._dense))
        )

    def leave(self, row: int) -> None:
        index = np.arange(self.rows - 1)
        if row < len(index):
            index[row] = self.rows - 1
        self._caches = tuple(self._caches[place] for place in index)
        self._call.forget()
        self._held, self._dense = self._held[index], self._dense[index]
        self._take(index, self)

    def truncate(self, lengths: Array) -> None:
        """As `Session.truncate`; the engine reads no further than a row's length."""
        left = as_numpy(lengths)
        check_cut(left, self._held, np.zeros_like(left))
        self._held = left
        self._dense = np.minimum(self._dense, self._held)

    def _pass(
        self,
        tokens: np.ndarray,
        keep: Array | None,
        split: Split | None = None,
        keep_logits: Array | None = None,
        exact_largest: int | np.ndarray = 0,
        decide: bool = False,
        counts: np.ndarray | None = None,
    ) -> Result:
        """As `Session._pass`; the engine counts what was spent."""
        count = tokens.shape[1]
        read = count if counts is None else counts
        self._prepare(read)
        run, rows = self._call.run, (self._caches, tokens, self._held, self._budgets)
        skipped = 0 if keep_logits is None else int(keep_logits.min())  # first tokens, whose logits nobody wants
        wanted: dict[str, Any] = {"logit_steps": count - skipped, "adaptive_head": True, "counts": counts}
        wanted["outputs"] = self.outputs
        if isinstance(exact_largest, np.ndarray):
            wanted |= {"exact_largest": int(exact_largest.max()), "exact_rows": exact_largest == 0}
        else:
            wanted["exact_largest"] = exact_largest
        if split is None:
            done = run(*rows, keep, decide=decide, **wanted)
        else:
            before = run(*rows, keep, last=split.layer, counts=counts) if split.layer else None
            later = self._chosen(split, self.engine.embed(tokens) if before is None else before.stream.copy())
            done = run(*rows, later, first=split.layer, before=before, **wanted)
        # As few operations as can be: right after a pass each takes several times as long as usual (see `EngineCall`).
        places = self._held[:, None] if count == 1 else self._held[:, None] + np.arange(count)
        controllable = (places[..., None] >= self._always_read) | FROM_THE_START
        self._held = self._held + read
        actions = None
        if decide and len(self._own_groups) == len(self._groups):
            actions = done.actions
        elif keep is None or decide:
            actions = self._dense_actions(count)
            if decide:  # the engine gives -1 for rows that it does not decide for
                actions = np.where(done.actions < 0, actions, done.actions)
        result = Result(done.logits, done.stream[:, skipped:], done.realised, controllable, actions)
        done.logits = _TAKEN  # or they would be in memory until the end of the next pass
        if keep_logits is None:
            return result
        index = (as_numpy(keep_logits) - skipped)[..., None]
        logits, hidden = (np.take_along_axis(values, index, 1) for values in (result.logits, result.hidden))
        return replace(result, logits=logits, hidden=hidden)

    @staticmethod
    def _chosen(split: Split, enters: np.ndarray) -> Array:
        """What the layers from `split.layer` on follow, decided in torch."""
        import torch

        with torch.no_grad(), one_torch_thread():
            return split.choose(as_tensor(enters))

    def _prepare(self, count: int | np.ndarray) -> None:
        super()._prepare(count)
        self._make_room(self._held + count)

    def _make_room(self, wanted: np.ndarray) -> None:
        """Give every row a cache of at least wanted [N] tokens."""
        longest = int(wanted.max())
        if all(cache.capacity >= longest for cache in self._caches):
            return
        self._caches = tuple(
            cache if cache.capacity >= longest else Cache(self.engine, longest + longest // 2, cache, int(length))
            for cache, length in zip(self._caches, self._held, strict=True)
        )
