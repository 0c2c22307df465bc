"""`Session`: prefill, step, fork and score for a batch of rows on a controlled model."""

from collections.abc import Callable

import torch

from solm.backends.passes import Extended, Scored, Turn, log_probabilities
from solm.backends.rows import Rows
from solm.backends.torch.active import ActivePass, activate
from solm.backends.torch.cache import PagedCache
from solm.backends.torch.families import decoder_layers
from solm.backends.torch.hooks import ModelControl
from solm.backends.torch.layout import Layout
from solm.backends.torch.plan import Plan, make_plan
from solm.core.actions import DENSE
from solm.core.budget import Ledger
from solm.core.errors import ContextLengthError, DataError
from solm.core.sparsity import SparsityConfig


class Session(Rows):
    """N = S·K rows: K forks of each of S sequences, with their cache and ledger.

    A step's action is given as numbers, keep [N, 3] = (κ, ρ, bits); steps that are not controllable yet (KV length
    at most sinks + window + 1) run dense whatever it says, and are not booked. It holds for all layers, or, with a
    `Turn`, for the layers before it.
    """

    approximate_tail = False
    """Whether logits that are well below a step's largest may be approximate, for whoever chooses the largest only. The
    compiled engine then reads little more than half of an int8 head."""

    def __init__(self, control: ModelControl, sparsity: SparsityConfig, capacity: int = 0):
        """capacity: tokens to reserve room for; more are taken, at the price of a copy."""
        self.control, self.sparsity = control, sparsity
        self.device = next(control.model.parameters()).device
        """Where the embeddings are, and what sessions hand out but logits; layers may lie elsewhere."""
        last = next(decoder_layers(control.model)[-1].parameters()).device
        self._end = self.device if last.type == "meta" else last  # weights that wait on the disk are on `meta`
        config = control.model.config.get_text_config(decoder=True)
        self.limit: int | None = getattr(config, "max_position_embeddings", None)
        """Tokens that the model's context holds, where its configuration says so."""
        self.cache = PagedCache.empty(control.model.config, sparsity.page_size, capacity)
        self.sequences, self.forks = 0, 1
        self.lengths = torch.zeros(0, dtype=torch.int64)
        self.base = torch.zeros(0, dtype=torch.int64)
        self.shared = 0
        self.ledger = Ledger.empty(0)
        self.hidden = torch.zeros(0)
        """[N, H] last hidden state of every row."""
        self._realised = torch.zeros(0, 3, dtype=torch.float64)
        self._counted: torch.Tensor | None = None
        """[N, Q] share of MLP channels that thresholds kept in the last pass; None without thresholds."""

    @property
    def realised(self) -> torch.Tensor:
        """[N, 3] shares that the last step of every row realised."""
        return self._realised

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Input embeddings of tokens [...]: [..., H]."""
        return self.control.model.get_input_embeddings()(tokens.to(self.device))

    @torch.no_grad()
    def prefill(
        self, tokens: torch.Tensor, lengths: torch.Tensor | None = None, every_logit: bool = False
    ) -> torch.Tensor:
        """Read tokens [S, C] densely, through the stock model's own path; logits of every row's last token [S, V].

        lengths: [S] tokens that count in each row, the rest being padding on the right. every_logit: of every token
        instead, [S, C, V].
        Raises `ContextLengthError` and `DataError` (no tokens), and refuses forked rows.
        """
        if self.forks > 1 or self.shared or (self.rows and len(tokens) != self.rows):
            raise DataError("prefill continues only rows that were not forked or padded")
        counts = torch.full((len(tokens),), tokens.shape[1]) if lengths is None else lengths.cpu()
        if tokens.shape[1] == 0 or int(counts.min()) < 1:
            raise DataError("nothing to prefill: every row needs at least one token")
        if not self.rows:
            self.sequences = len(tokens)
            self.lengths = self.base = torch.zeros(len(tokens), dtype=torch.int64)
            self.ledger = Ledger.empty(len(tokens))
        wanted = 0 if every_logit else (counts - 1)[:, None]
        logits = self._forward(tokens, self._positions(tokens.shape[1]), wanted)
        hidden = self.control.last_hidden().to(self.device)
        self.hidden = hidden[torch.arange(len(tokens)), counts - 1] if every_logit else hidden[:, -1]
        self.lengths = self.lengths + counts
        if int(counts.min()) < tokens.shape[1]:
            self._branch(1)
        return logits if every_logit else logits[:, -1]

    @torch.no_grad()
    def step(self, tokens: torch.Tensor, keep: torch.Tensor | None = None, turn: Turn | None = None) -> torch.Tensor:
        """Process one token per row, tokens [N], under keep [N, 3] (None: dense); logits of the next [N, V]."""
        return self.extend(tokens[:, None], None if keep is None else keep[:, None], turn).logits[:, 0]

    @torch.no_grad()
    def extend(
        self,
        tokens: torch.Tensor,
        keep: torch.Tensor | None = None,
        turn: Turn | None = None,
        keep_logits: torch.Tensor | None = None,
    ) -> Extended:
        """Process tokens [N, Q] in one pass under a known schedule keep [N, Q, 3] (None: dense). Equals Q steps.

        keep_logits: [N, L] positions among the Q whose hidden states and logits are wanted; None: all.
        """
        count = tokens.shape[1]
        keep = self._dense(count) if keep is None else keep
        positions = self._positions(count)
        controllable = positions + 1 > self.sparsity.always_read
        dense = self._dense(count)

        def settle(keep: torch.Tensor) -> Plan:
            keep = torch.where(controllable[..., None], keep.to("cpu", torch.float64), dense)
            return make_plan(keep, positions + 1, self.sparsity, self.control.shapes)

        plan = settle(keep)
        realised, choose = plan.realised, None
        if turn is not None:
            layers = self.control.shapes.layers

            def choose(hidden: torch.Tensor) -> Plan:
                nonlocal realised
                rest = settle(turn.choose(hidden))
                realised = plan.realised_by(0, turn.layer, layers) + rest.realised_by(turn.layer, layers, layers)
                return rest.to(self.device)

        wanted = 0 if keep_logits is None else keep_logits
        logits = self._forward(tokens, positions, wanted, plan, None if turn is None else turn.layer, choose)
        hidden = self.control.last_hidden().to(self.device)
        if self._counted is not None:
            realised = torch.stack([realised[..., 0], self._counted, realised[..., 2]], -1)
        self.hidden, self._realised = hidden[:, -1], realised[:, -1]
        self.lengths = self.lengths + count
        counted = controllable.to(torch.float64)
        self.ledger = Ledger(
            self.ledger.spent + (realised * counted[..., None]).sum(1), self.ledger.steps + controllable.sum(1)
        )
        return Extended(logits, hidden, realised, controllable)

    def score(self, tokens: torch.Tensor, keep: torch.Tensor, turn: Turn | None = None) -> Scored:
        """Process tokens[:, :T] of [N, T+1] under keep [N, T, 3]: log p(tokens[:, t+1] | tokens and schedule up to t)
        for every t."""
        found = self.extend(tokens[:, :-1], keep, turn)
        return Scored(log_probabilities(found.logits, tokens[:, 1:]), found.hidden, found.realised, found.controllable)

    def truncate(self, lengths: torch.Tensor) -> None:
        """Forget what rows hold beyond lengths [N], such as the padding of an `extend`; the ledger stays as it is.

        Raises `DataError` where a row holds less than that, or shares what it should forget.
        """
        if bool((lengths > self.lengths).any()) or bool((lengths < self.base).any()):
            raise DataError(f"rows of {self.lengths.tolist()} tokens cannot be cut to {lengths.tolist()}")
        self.lengths = lengths
        self._forget(lengths - self.base)

    def _forget(self, own: torch.Tensor) -> None:
        for layer in self.cache.layers:
            layer.truncate(int(own.max()), int(own.min()))

    def copy(self, length: int, capacity: int = 0) -> "Session":
        """A session of one row that has seen the first `length` tokens of this one's only row, nothing decided.

        Raises `DataError` where that row has not seen them in a prefill of its own.
        """
        if self.rows != 1 or self.shared or not 0 < length <= int(self.lengths[0]):
            raise DataError(f"cannot copy {length} tokens of {self.rows} rows with {self.lengths.tolist()}")
        child = object.__new__(type(self))
        child.__dict__.update(self.__dict__)
        child.cache = self.cache.copy(length, capacity)
        child.lengths, child.ledger = torch.tensor([length]), Ledger.empty(1)
        return child

    def join(self, other: "Session") -> None:
        """Append the rows of `other`, which must not be used afterwards; rows may have different lengths.

        Raises `DataError` for rows that are forks.
        """
        for session in (self, other):
            if session.shared or session.forks > 1:
                raise DataError("rows that share a prefix cannot join others")
        self.sequences += other.sequences
        self.base = torch.cat([self.base, other.base])
        self.lengths = torch.cat([self.lengths, other.lengths])
        self.hidden = torch.cat([self.hidden, other.hidden])
        self.ledger = self.ledger.join(other.ledger)
        self._take_in(other)

    def leave(self, row: int) -> None:
        """Drop a row; the last one takes its place."""
        index = torch.arange(self.rows - 1)
        if row < len(index):
            index[row] = self.rows - 1
        self.sequences -= 1
        self.base, self.lengths, self.hidden = self.base[index], self.lengths[index], self.hidden[index]
        self.ledger = self.ledger.rows(index)
        self._let_go(row)

    def _take_in(self, other: "Session") -> None:
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.join(theirs)
        self._forget(self.lengths)

    def _let_go(self, row: int) -> None:
        for layer in self.cache.layers:
            layer.leave(row)
        if self.rows:
            self._forget(self.lengths)

    def fork(self, forks: int, capacity: int = 0) -> "Session":
        """A session of `forks` rows for each of this one's, adjacent; independent of this one from here on.

        Rows that own nothing but a whole sequence share it: only what lies beyond the last whole page is copied.
        Rows that are forks already keep sharing their prefix, and what they decoded since is copied.
        """
        child = object.__new__(type(self))
        child.__dict__.update(self.__dict__)
        child._branch(forks, capacity)
        return child

    def _branch(self, forks: int, capacity: int = 0) -> None:
        base = self.base
        if not self.shared and self.forks == 1:
            base = self.lengths // self.sparsity.page_size * self.sparsity.page_size
            self.shared = int(base.max())
            self.cache = self.cache.fork(forks, self.lengths, self.shared, capacity)
        else:
            self.cache = self.cache.widen(forks, capacity)
        self._spread(forks, base)

    def _spread(self, forks: int, base: torch.Tensor) -> None:
        self.forks *= forks
        self.base = base.repeat_interleave(forks)
        self.lengths = self.lengths.repeat_interleave(forks)
        self.ledger = self.ledger.repeat(forks)
        self.hidden = self.hidden.repeat_interleave(forks, 0)

    def _positions(self, count: int) -> torch.Tensor:
        self.check_length(int(self.lengths.max()) + count)
        return self.lengths[:, None] + torch.arange(count)

    def check_length(self, longest: int) -> None:
        """Raises `ContextLengthError` where rows of `longest` tokens are more than the model can read."""
        if self.limit is not None and longest > self.limit:
            raise ContextLengthError(f"{longest} tokens are too many: this model's context holds {self.limit}")

    def _dense(self, count: int) -> torch.Tensor:
        return torch.tensor(DENSE, dtype=torch.float64).expand(self.rows, count, 3)

    def _forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        keep_logits: int | torch.Tensor,
        plan: Plan | None = None,
        turn: int | None = None,
        choose: Callable[[torch.Tensor], Plan] | None = None,
    ) -> torch.Tensor:
        """One pass of the model under `plan`, from layer `turn` on under the one that `choose` returns.

        Without forks and without a sparse axis it is the stock model's, bit for bit.
        """
        current = None
        slots = None
        ragged = int(self.lengths.min()) < int(self.lengths.max())
        if ragged or self.shared or self.forks > 1 or turn is not None or (plan is not None and plan.sparse):
            assert plan is not None
            count = positions.shape[1]
            slots = (positions - self.base[:, None]).to(self.device) if ragged else None
            own = int((self.lengths - self.base).max()) + count
            layout = Layout(
                self.sequences,
                self.forks,
                positions.to(self.device),
                self.base.to(self.device),
                self.shared,
                own,
                uniform_base=int(self.base.min()) == int(self.base.max()),
            )
            current = ActivePass(plan.to(self.device), layout, self.cache, turn, choose)
        self.cache.write_to(slots)
        if isinstance(keep_logits, torch.Tensor):
            keep_logits = keep_logits.to(self._end)
        with activate(current):
            output = self.control.model(
                input_ids=tokens.to(self.device),
                position_ids=positions.to(self.device),
                cache=self.cache,
                use_cache=True,
                logits_to_keep=keep_logits,
            )
        self._counted = None if current is None else current.realised_mlp()
        return output.logits
