"""`LanguageModel`: what `solm.load` and `solm.attach` return. It generates under a budget."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from numbers import Integral
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np

from solm.backends.session import AnyPolicy, Session
from solm.core.arrays import Array, as_tensor
from solm.core.budget import Budget, BudgetLike, BudgetRequest, Budgets, Terms
from solm.core.clock import UNSURE, RunningClock, StepClock
from solm.core.errors import BudgetError, ContextLengthError, DataError, SolmError
from solm.policies.calibration import Calibration
from solm.policies.schedules import Dense
from solm.runtime.batch import Row, decode
from solm.runtime.calibrate import Progress, calibrate, can_calibrate
from solm.runtime.clock import keep, kept, measure_clock
from solm.runtime.controlled import ControlledModel
from solm.runtime.grammars import Grammar
from solm.runtime.guess import Allowance, guess_count
from solm.runtime.prompts import Message, Prompt, Prompts, are_ids, encode, token_rows
from solm.runtime.reply import Reply, TextStream, Token
from solm.runtime.sampling import Sampler
from solm.runtime.thinking import ThinkingReader

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class GenerateOptions:
    """How a reply is generated.

    Args:
        budget: what the steps may spend on average, in any form of `LanguageModel.budget`: ``0.7`` (a share of the
            dense step's time or bytes), ``"keep=0.6"``, ``"attention=0.4,mlp=0.8"``, ``"ms=4.5"`` or a `Budget`; None:
            dense. ``"loss=0.02"``: what the policy's curve predicts to lose so many nats per token; without such a
            policy, on the cpu backend with weights in integers, steps are dense and guesses may give up so much, which
            is measured.
        policy: ``policy`` (the loaded one), ``dense`` or ``static``, or a policy itself; by default the
            loaded one; without one, ``static`` where there is a budget, else ``dense``.
        max_new_tokens: most tokens of the reply.
        reasoning_budget: the same for the thinking of a model that thinks before it answers; None: as `budget`.
        seed: of all random numbers.
        stop_strings: texts that end the reply, which still contains them.
        grammar: what the reply must fit.
        guess: how many of the next tokens are guessed before every pass of a dense reply, which verifies them: ``auto``
            (as many as pay), ``off``, or a number up to 15. The tokens are those of dense steps. That holds to the last
            bit on the cpu backend with weights in integers; elsewhere ``auto`` guesses nothing.
        prediction: a text that the reply is expected to be like; guesses come from it first.
        sampling: transformers' generation options in `solm.runtime.sampling.SUPPORTED` (do_sample, temperature, top_p,
            top_k, min_p, repetition_penalty, ...), and presence_penalty and frequency_penalty. Greedy by default.

    Raises `SolmError` for values that no prompt could be generated with.
    """

    budget: BudgetLike = None
    policy: str | AnyPolicy | None = None
    reasoning_budget: BudgetLike = None
    max_new_tokens: int = 128
    seed: int = 0
    stop_strings: str | list[str] | tuple[str, ...] = ()
    grammar: Grammar | None = None
    guess: str | int = "auto"
    prediction: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """From keyword arguments, of which those that are no fields are sampling options."""
        names = {each.name for each in fields(cls)} - {"sampling"}
        own = {name: value for name, value in options.items() if name in names}
        return cls(**own, sampling={name: value for name, value in options.items() if name not in names})

    def __post_init__(self) -> None:
        if not isinstance(self.seed, Integral):
            raise SolmError(f"seed must be a whole number, got {self.seed!r}")
        stops = [self.stop_strings] if isinstance(self.stop_strings, str) else self.stop_strings or []
        if not isinstance(stops, list | tuple) or not all(isinstance(stop, str) and stop for stop in stops):
            raise SolmError(f"stop_strings must be texts that are not empty, got {self.stop_strings!r}")
        object.__setattr__(self, "stop_strings", tuple(stops))
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            kind = type(self.grammar).__name__
            raise SolmError(f"grammar must be a solm.Grammar, such as Grammar.regex(...), got {kind}")
        if self.prediction is not None and not isinstance(self.prediction, str):
            raise SolmError(f"prediction must be a text, got {self.prediction!r}")
        if not isinstance(self.max_new_tokens, Integral) or self.max_new_tokens < 1:
            raise SolmError(f"max_new_tokens must be a whole number of at least 1, got {self.max_new_tokens!r}")
        guess_count(self.guess, exact=True)


class _BetterToDoError(Exception):
    """Ends a measurement."""


class LanguageModel(ControlledModel):
    """A frozen model under control that generates: from text, conversations, token ids, or several of them."""

    _timed: Self | None = None

    def timed(self, progress: Progress = lambda what, done, total: None) -> Self:
        """The model with step times of this machine, for budgets in time: itself with a policy, another one over the
        same weights without one, as a calibration then says what its steps leave out first.

        Both are measured at the first call, in seconds, and kept in the cache folder. Step times that were given stay;
        on the torch backend nothing is measured. progress: called with what is done now, parts done and all parts.
        """
        frozen = self._given is not None
        if self.clock is not None or not self.beside_engine:
            return self
        if self._timed is None:
            lm = self
            if can_calibrate(self):
                found = kept(self, Calibration, lambda: calibrate(self, progress))
                lm = self.with_policy(None, found.applied(self.sparsity))
                lm.calibration = found
            if not frozen:
                clock = kept(lm, StepClock, lambda: measure_clock(lm, progress), lambda clock: clock.error > UNSURE)
                lm.clock = RunningClock(clock)
            self._timed = lm
        return self._timed

    def time_again(self, stop: Callable[[], bool]) -> None:
        """Measure step times anew where they are unsure, for replies to come; in vain as soon as `stop` says that there
        is something better to do."""

        def watch(*_: object) -> None:
            if stop():
                raise _BetterToDoError

        with suppress(_BetterToDoError):
            if self.clock is not None and self.clock.now.error > UNSURE:
                found = measure_clock(self, watch)
                if found.error < self.clock.now.error:
                    keep(self, found)
                    self.clock = RunningClock(found)

    def timed_for(self, budget: BudgetLike, progress: Progress = lambda what, done, total: None) -> Self:
        """`timed` where `budget` is one in time, as a loss by a policy's curve is, too; else the model itself. Raises
        `BudgetError` for one that cannot be read."""
        request = BudgetRequest.parse(budget)
        in_time = request.in_time and (request.kind != "loss" or self.budgets().curve is not None)
        return self.timed(progress) if in_time else self

    @overload
    def generate(self, prompt: str | list[Message], **options: Any) -> Reply: ...
    @overload
    def generate(self, prompt: list[str] | list[list[Message]], **options: Any) -> list[Reply]: ...
    @overload
    def generate(self, prompt: Array | None = None, **options: Any) -> Any: ...
    def generate(
        self, prompt: Prompts | None = None, *, streamer: Any = None, batch_size: int = 16, **options: Any
    ) -> Any:
        """Generate under a budget.

        Args:
            prompt: text, a list of messages (dicts with role and content), token ids [N, C] with their attention_mask,
                what a tokenizer returns (``generate(**inputs, budget=0.6)``), or a list of texts or of lists of
                messages. One prompt gives a `Reply`; several prompts, or N > 1, give a list of them.
            streamer: of transformers, such as `TextStreamer` or `TextIteratorStreamer`, for one prompt: gets the prompt
                and every token, and is ended.
            batch_size: most prompts that decode together; the others wait.
            options: of `GenerateOptions`; and chat_template_kwargs, what the model's chat template is told, such as
                ``{"enable_thinking": False}``. A list of budgets has one for every prompt. seed: of the first prompt;
                prompt i draws as it would alone with seed + i.

        Raises:
            BudgetError: a budget that cannot be read or met.
            ContextLengthError: prompt and new tokens exceed the model's context.
            GrammarError: a grammar that is malformed, or that takes too much.
            SolmError: an option that is unknown or not supported, or an impossible length; of several prompts the
                message says which, before anything is generated.
        """
        with ending(streamer):
            prompts, several = self._prompts(prompt, options)
            if batch_size < 1:
                raise SolmError(f"batch_size must be at least 1, got {batch_size}")
            if streamer is not None and len(prompts) != 1:
                raise SolmError(f"a streamer takes one prompt, got {len(prompts)}")
            made = self._rows(prompts, options)
            if streamer is not None:
                streamer.put(as_tensor(prompts[0]).cpu())
            for lm in dict.fromkeys(started.lm for started in made):
                for row in decode(lm, [started.row for started in made if started.lm is lm], batch_size):
                    if streamer is not None:
                        streamer.put(as_tensor([row.ids[-1]]))
            replies = [started.reply for started in made]
            return replies if several else replies[0]

    def stream(self, prompt: Prompt | None = None, *, session: Session | None = None, **options: Any) -> "Stream":
        """The reply to one prompt, token by token. Prompt, options and errors as for `generate`.

        session: one row that has read the first tokens of the prompt, at most all but the last; by default a new one.
        It must not be used afterwards.
        """
        prompts, several = self._prompts(prompt, options)
        if several:
            raise DataError(f"stream takes one prompt, got {len(prompts)}; generate takes several")
        started = self._started(prompts[0], GenerateOptions.of(options), read_text=True)
        if session is not None and session.rows and started.lm is not self:
            session = session.fork(1, started.row.left + 1, started.lm.sparsity)
        started.row.session = session
        return started

    def custom_generate(
        self, budget: BudgetLike = None, policy: str | AnyPolicy | None = None, streamer: Any = None
    ) -> "Callable[..., torch.Tensor]":
        """A decoding loop for ``model.generate`` of the attached transformers model that keeps a budget.

        Pass it as ``custom_generate``; see `solm.custom_generate`, which attaches the model itself.
        """
        from solm.runtime import custom

        return ending(streamer)(custom.custom_generate(self.timed_for(budget), budget, policy, streamer))

    def encode(self, prompt: Prompt, system: str | None = None) -> "torch.Tensor":
        """Token ids [1, C] of a prompt, through the chat template where the tokenizer has one, after `system`."""
        if are_ids(prompt):
            rows, _ = token_rows(None, prompt)
            return as_tensor(np.concatenate(rows))
        return as_tensor(encode(self.tokenizer, prompt, system))  # type: ignore[arg-type]

    def _prompts(self, prompt: Prompts | None, options: dict[str, Any]) -> tuple[list[np.ndarray], bool]:
        """The token ids [1, C] of every prompt, of `input_ids` and `attention_mask` taken out of `options` where they
        are there, and whether there are several."""
        rows, several = token_rows(
            self.tokenizer, prompt, options.pop("input_ids", None), options.pop("attention_mask", None),
            options.pop("chat_template_kwargs", None),
        )  # fmt: skip
        options.pop("token_type_ids", None)  # some tokenizers return them; causal models read none
        for row in rows:
            low, high = int(row.min()), int(row.max())
            if low < 0 or high >= self.shapes.vocabulary:
                wrong = low if low < 0 else high
                raise DataError(f"token {wrong} is not among the model's {self.shapes.vocabulary}")
        return rows, several

    def _rows(self, prompts: list[np.ndarray], options: Mapping[str, Any]) -> "list[Stream]":
        """The reply to every prompt, not yet begun."""
        budget, seed = options.get("budget"), options.get("seed", 0)
        budgets: list[Any] = list(budget) if isinstance(budget, list | tuple) else [budget] * len(prompts)
        if len(budgets) != len(prompts):
            raise BudgetError(f"there are {len(budgets)} budgets for {len(prompts)} prompts; give one, or one for each")
        GenerateOptions.of({**options, "budget": None})
        rows = []
        for number, (ids, own) in enumerate(zip(prompts, budgets, strict=True)):
            try:
                rows.append(
                    self._started(ids, GenerateOptions.of({**options, "budget": own, "seed": int(seed) + number}))
                )
            except SolmError as error:
                if len(prompts) == 1:
                    raise
                raise type(error)(f"prompt {number}: {error}") from error
        return rows

    def _started(self, ids: np.ndarray, options: GenerateOptions, read_text: bool = False) -> "Stream":
        """The reply to a prompt [1, C], not yet begun. read_text: the text of every token is wanted."""
        lm = self
        for each in (options.budget, options.reasoning_budget) if options.policy != "dense" else ():
            lm = lm.timed_for(each)
        if lm is not self and (options.policy is None or isinstance(options.policy, str)):
            return lm._started(ids, options, read_text)
        prompt, longest = ids.shape[1], options.max_new_tokens
        for name in ("stop_strings", "prediction"):
            if getattr(options, name) and self.tokenizer is None:
                raise SolmError(f"{name} needs a tokenizer; pass one to attach")
        check_length(prompt, longest, self.context)
        reader = ThinkingReader.of(self.tokenizer, ids[0])
        if options.reasoning_budget is not None and reader is None:
            raise BudgetError("reasoning_budget needs a model whose chat template knows thinking; this one's does not")
        asked = (options.budget, options.budget if options.reasoning_budget is None else options.reasoning_budget)
        policy = self.decider(options.policy, next((each for each in asked if each is not None), None))
        budgets = self.budgets(policy)
        budget, thinking = (budgets.resolve(each, prompt + longest // 2) for each in asked)
        if options.reasoning_budget is not None and (budget.loss, thinking.loss) != (None, None):
            raise BudgetError("a loss that is verified holds for the whole reply; give it as the budget alone")
        dense = budget.budget == thinking.budget == Budget()
        if isinstance(policy, Dense) and not dense:
            told = options.budget if options.reasoning_budget is None else options.reasoning_budget
            raise BudgetError(f"budget {told} needs another policy than dense, which spends everything")
        if dense:
            policy = self.policy("dense", policy.space)  # which reads no weights of its own, and may guess
        constraint = None if options.grammar is None else self.compiler.compile(options.grammar)
        sampler = Sampler.of(self, ids, int(options.seed), options.sampling, constraint)
        sampler.allowance = None if budget.loss is None else Allowance(budget.loss)
        text = TextStream(self.tokenizer) if read_text or options.stop_strings or reader is not None else None
        row = Row(ids[0], policy, budget.budget.shares, longest, sampler, text=text, stops=options.stop_strings)
        row.guess = guess_count(options.guess, self.backend.exact_passes)
        if options.prediction:
            row.predicted = self.tokenizer.encode(options.prediction, add_special_tokens=False)
        if reader is not None:
            row.think(reader, thinking.budget.shares)
        return Stream(self, row, budget.terms, thinking.terms, budgets)


@dataclass(eq=False)
class Stream(Iterator[Token]):
    """A reply of `lm` that `row` decodes: its tokens as they are generated. requested, thinking: the budgets of its
    answer and of its thinking, in all units. budgets: with the step times of its start, which a reply keeps."""

    lm: LanguageModel
    row: Row
    requested: Terms
    thinking: Terms
    budgets: Budgets

    def __post_init__(self) -> None:
        self._steps = decode(self.lm, [self.row], 1)

    def __next__(self) -> Token:
        row = next(self._steps)
        return row.trace.token(len(row.ids) - 1, row.new, self.budgets)

    def close(self) -> None:
        """End the reply."""
        self._steps.close()

    @property
    def reply(self) -> Reply:
        """What has been generated so far."""
        tokenizer, row, text, reasoning = self.lm.tokenizer, self.row, "", ""
        if reader := ThinkingReader.of(tokenizer, row.prompt):
            reasoning, text = reader.read(tokenizer, row.ids)
        elif tokenizer is not None:
            text = str(tokenizer.decode(row.ids, skip_special_tokens=True))
        spent = row.trace.compute(self.budgets, row.mean(self.requested, self.thinking))
        return Reply(text, spent, row.trace, tokenizer, self.budgets, reasoning)


@contextmanager
def ending(streamer: Any) -> Iterator[None]:
    """End `streamer`, where there is one, however the block ends: somebody may wait for it in another thread."""
    try:
        yield
    finally:
        if streamer is not None:
            streamer.end()


def check_length(prompt: int, new: int, context: int | None) -> None:
    """Raises `ContextLengthError` where `prompt` tokens and `new` ones exceed the model's context."""
    if context is not None and prompt + new > context:
        raise ContextLengthError(f"a prompt of {prompt} and {new} new tokens exceed this model's context of {context}")
