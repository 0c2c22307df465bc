"""Free-running generation under a budget, of one prompt or several, with a trace of what every token cost."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

from solm.backends.session import AnyPolicy, Session
from solm.core.arrays import Array, as_tensor
from solm.core.budget import Budget, BudgetLike, Terms
from solm.core.errors import BudgetError, ContextLengthError, SolmError
from solm.policies.schedules import Dense
from solm.runtime.controlled import ControlledModel
from solm.runtime.decode import Draft, Row, decode
from solm.runtime.grammars import Grammar
from solm.runtime.reply import Compute, Reply, Token
from solm.runtime.sampling import Sampler


def generate(
    lm: ControlledModel,
    prompts: Sequence[Array],
    budget: BudgetLike | Sequence[BudgetLike] = None,
    policy: str | AnyPolicy | None = None,
    seed: int = 0,
    streamer: Any = None,
    batch_size: int = 16,
    **options: Any,
) -> list[Reply]:
    """The replies to several prompts, decoded in one batch.

    Args:
        prompts: token ids [1, C] int64 of each prompt.
        budget: as for `stream`; a list has one for every prompt.
        policy: as for `stream`.
        seed: of the first prompt's random numbers; prompt i draws as it would alone with seed + i.
        streamer: of transformers, such as `TextStreamer` or `TextIteratorStreamer`, for one prompt: gets the prompt
            and every token; `LanguageModel.generate` ends it.
        batch_size: most prompts that decode together; the others wait.
        options: the other options of `stream`.

    Raises:
        SolmError: as `stream` does, before anything is generated; the message says which prompt.
    """
    if batch_size < 1:
        raise SolmError(f"batch_size must be at least 1, got {batch_size}")
    budgets: list[Any] = list(budget) if isinstance(budget, list | tuple) else [budget] * len(prompts)
    if len(budgets) != len(prompts):
        raise BudgetError(f"there are {len(budgets)} budgets for {len(prompts)} prompts; give one, or one for each")
    if streamer is not None and len(prompts) != 1:
        raise SolmError(f"a streamer takes one prompt, got {len(prompts)}")
    known: dict[str, AnyPolicy] = {}
    rows, asked = [], []
    for number, (ids, wanted) in enumerate(zip(prompts, budgets, strict=True)):
        name = _named(lm, policy, wanted)
        # One object for all rows of a policy, which are then decided together.
        decides = known.setdefault(name, lm.policy(name)) if isinstance(name, str) else name
        try:
            rows.append(_row(lm, ids, wanted, decides, seed=_whole(seed) + number, **options))
        except SolmError as error:
            if len(prompts) == 1:
                raise
            raise type(error)(f"prompt {number}: {error}") from error
        seen = ids.shape[1] + rows[-1].longest // 2
        asked.append(lm.budgets(decides).terms(rows[-1].budget, seen, wanted))
    if streamer is not None:
        streamer.put(as_tensor(prompts[0]).cpu())
    for _, token in decode(lm, rows, batch_size):
        if streamer is not None:
            streamer.put(as_tensor([token.id]))
    return [summarise(lm, row.draft.tokens, wanted, row.ids.shape[1]) for row, wanted in zip(rows, asked, strict=True)]


@contextmanager
def ending(streamer: Any) -> Iterator[None]:
    """End `streamer`, where there is one, however the block ends: somebody may wait for it in another thread."""
    try:
        yield
    finally:
        if streamer is not None:
            streamer.end()


def stream(
    lm: ControlledModel,
    ids: Array,
    budget: BudgetLike = None,
    policy: str | AnyPolicy | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
    max_length: int | None = None,
    stop_strings: str | list[str] | None = None,
    session: Session | None = None,
    grammar: Grammar | None = None,
    **sampling: Any,
) -> Iterator[Token]:
    """Generate a reply token by token.

    Args:
        ids: token ids [1, C] int64 of the prompt.
        budget: what the steps may spend on average, in any form of `LanguageModel.budget`: ``0.7`` (a share of the
            dense step's time or bytes), ``"keep=0.6"``, ``"attention=0.4,mlp=0.8"``, ``"ms=4.5"`` or a `Budget`; None:
            dense.
        policy: ``policy`` (the loaded one), ``dense``, ``static`` or ``random``, or a policy itself; by default the
            loaded one; without one, ``static`` where there is a budget, else ``dense``.
        max_new_tokens: most tokens of the reply; by default 128.
        seed: of all random numbers.
        max_length: most tokens of prompt and reply together, in place of `max_new_tokens`.
        stop_strings: texts that end the reply, which still contains them.
        session: one row that has read the first tokens of `ids`, at most all but the last; by default a new one. It
            must not be used afterwards.
        grammar: what the reply must fit.
        sampling: transformers' generation options in `solm.runtime.sampling.SUPPORTED` (do_sample, temperature, top_p,
            top_k, min_p, repetition_penalty, ...), and presence_penalty and frequency_penalty. Greedy by default.

    Raises:
        BudgetError: a budget that cannot be read or met.
        ContextLengthError: prompt and new tokens exceed the model's context.
        GrammarError: a grammar that is malformed, or that takes too much.
        SolmError: an option that is unknown or not supported, or an impossible length.
    """
    decides = chosen_policy(lm, policy, budget)
    row = _row(lm, ids, budget, decides, max_new_tokens, seed, max_length, stop_strings, session, grammar, **sampling)
    for _, token in decode(lm, [row], 1):
        yield token


def _row(
    lm: ControlledModel,
    ids: Array,
    budget: BudgetLike,
    policy: AnyPolicy,
    max_new_tokens: int | None = None,
    seed: int = 0,
    max_length: int | None = None,
    stop_strings: str | list[str] | None = None,
    session: Session | None = None,
    grammar: Grammar | None = None,
    **sampling: Any,
) -> Row:
    """What `stream` is asked for, checked."""
    prompt = ids.shape[1]
    longest = _longest(prompt, max_new_tokens, max_length)
    stops = [stop_strings] if isinstance(stop_strings, str) else stop_strings or []
    if stops and lm.tokenizer is None:
        raise SolmError("stop_strings need a tokenizer; pass one to attach")
    if not isinstance(stops, list | tuple) or not all(isinstance(stop, str) and stop for stop in stops):
        raise SolmError(f"stop_strings must be texts that are not empty, got {stop_strings!r}")
    if grammar is not None and not isinstance(grammar, Grammar):
        raise SolmError(f"grammar must be a solm.Grammar, such as Grammar.regex(...), got {type(grammar).__name__}")
    check_length(prompt, longest, lm.context)
    target = lm.budget(budget, prompt + longest // 2, policy)
    if isinstance(policy, Dense) and target != Budget():
        raise BudgetError(f"budget {budget} needs another policy than dense, which spends everything")
    constraint = None if grammar is None else lm.compiler.compile(grammar)
    sampler = Sampler.of(lm, ids, _whole(seed), sampling, constraint)
    return Row(ids, policy, target, longest, Draft(lm, sampler, prompt, policy), _End(longest, stops), session)


def _whole(seed: int) -> int:
    if not isinstance(seed, Integral):
        raise SolmError(f"seed must be a whole number, got {seed!r}")
    return int(seed)  # NumPy's numbers have 64 bits


class _End:
    """Whether a reply is complete: an end token, the longest length, or a text after which it ends."""

    def __init__(self, longest: int, stops: list[str]):
        self._longest, self._stops, self._said = longest, stops, ""

    def __call__(self, draft: Draft) -> bool:
        last = draft.tokens[-1]
        self._said += last.text if self._stops else ""
        return (
            draft.sampler.ended(last.id)
            or len(draft.tokens) == self._longest
            or any(stop in self._said for stop in self._stops)
        )


def chosen_policy(lm: ControlledModel, policy: str | AnyPolicy | None, budget: BudgetLike) -> AnyPolicy:
    """The policy that was asked for; else the loaded one; without one, static where there is a budget, else dense."""
    name = _named(lm, policy, budget)
    return lm.policy(name) if isinstance(name, str) else name


def _named(lm: ControlledModel, policy: str | AnyPolicy | None, budget: BudgetLike) -> str | AnyPolicy:
    return policy or ("policy" if lm.trained is not None else "dense" if budget is None else "static")


def seen_on_average(ids: Array, max_new_tokens: int | None = None, max_length: int | None = None) -> int:
    """The tokens that a step of a reply to ids [1, C] sees on average: those of the prompt and half of the reply's."""
    return ids.shape[1] + _longest(ids.shape[1], max_new_tokens, max_length) // 2


def summarise(lm: ControlledModel, tokens: list[Token], requested: Terms, prompt: int) -> Reply:
    """The reply to `prompt` tokens that a finished stream amounts to; requested: the budget in all units."""
    ids = [token.id for token in tokens]
    text = "" if lm.tokenizer is None else str(lm.tokenizer.decode(ids, skip_special_tokens=True))
    return Reply(text, tokens, Compute.of(tokens[0].budgets if tokens else lm.budgets(), tokens, prompt, requested))


def _longest(prompt: int, max_new_tokens: int | None, max_length: int | None) -> int:
    """How many tokens a reply to `prompt` tokens may have."""
    if max_length is not None:
        if max_new_tokens is not None:
            raise SolmError("max_new_tokens and max_length say the same thing twice; give one of them")
        if not isinstance(max_length, Integral) or max_length <= prompt:
            raise SolmError(f"max_length must be above the {prompt} tokens of the prompt, got {max_length!r}")
        return max_length - prompt
    longest = 128 if max_new_tokens is None else max_new_tokens
    if not isinstance(longest, Integral) or longest < 1:
        raise SolmError(f"max_new_tokens must be a whole number of at least 1, got {longest!r}")
    return longest


def check_length(prompt: int, new: int, context: int | None) -> None:
    """Raises `ContextLengthError` where `prompt` tokens and `new` ones exceed the model's context."""
    if context is not None and prompt + new > context:
        raise ContextLengthError(f"a prompt of {prompt} and {new} new tokens exceed this model's context of {context}")
