"""Free-running generation under a budget, with a trace of what every token cost."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from solm.backends.session import AnyPolicy, Session
from solm.core.actions import AXES
from solm.core.budget import Budget, BudgetLike
from solm.core.errors import ContextLengthError, SolmError
from solm.runtime.sampling import Sampler
from solm.runtime.text import TextStream

if TYPE_CHECKING:
    from solm.runtime.language_model import LanguageModel


@dataclass(frozen=True)
class Token:
    """One generated token and the action of the step that processed the token before it.

    realised: shares per axis. cost: bytes read by that step as a share of the dense step. The first token of a
    reply comes from the dense prefill.
    """

    id: int
    text: str
    action: str
    realised: dict[str, float]
    cost: float
    controllable: bool


@dataclass(frozen=True)
class Compute:
    """What was asked for and what the controllable steps spent on average.

    Both by axis, with ``net`` (the mean of the axes) and ``bytes`` (a share of what dense steps read). dense_steps:
    steps that ran dense before any could be controlled.
    """

    requested: dict[str, float]
    realised: dict[str, float]
    dense_steps: int = 0

    @property
    def bytes(self) -> float:
        """Bytes read as a share of what dense steps read."""
        return self.realised["bytes"]


@dataclass(frozen=True)
class Reply:
    text: str
    tokens: list[Token]
    compute: Compute

    def as_dict(self) -> dict[str, Any]:
        """The JSON form: text, tokens with their actions, requested and realised compute."""
        return {
            "text": self.text,
            "tokens": [asdict(token) for token in self.tokens],
            "requested": self.compute.requested,
            "realised": self.compute.realised,
        }


def generate(lm: "LanguageModel", ids: torch.Tensor, **options: Any) -> Reply:
    """Generate from token ids [1, C]; options as for `stream`."""
    policy = chosen_policy(lm, options.pop("policy", None), options.get("budget"))
    context = seen_on_average(ids, options.get("max_new_tokens"), options.get("max_length"))
    budget = lm.budget(options.pop("budget", None), context, policy)
    tokens = list(stream(lm, ids, budget, policy, **options))
    return summarise(lm, tokens, asked_for(lm, budget, context, policy))


def chosen_policy(lm: "LanguageModel", policy: str | AnyPolicy | None, budget: BudgetLike) -> AnyPolicy:
    """The policy that was asked for; else the loaded one; without one, static where there is a budget, else dense."""
    name = policy or ("policy" if lm.trained is not None else "dense" if budget is None else "static")
    return lm.policy(name) if isinstance(name, str) else name


def seen_on_average(ids: torch.Tensor, max_new_tokens: int | None = None, max_length: int | None = None) -> int:
    """The tokens that a step of a reply to ids [1, C] sees on average: those of the prompt and half of the reply's."""
    return ids.shape[1] + _longest(ids.shape[1], max_new_tokens, max_length) // 2


def asked_for(lm: "LanguageModel", budget: Budget, context: int, policy: AnyPolicy) -> dict[str, float]:
    """The budget by axis, with ``net`` and ``bytes``, for steps that see `context` tokens."""
    shares = dict(zip(AXES, budget.shares, strict=True))
    return shares | {"net": budget.net, "bytes": lm.offer(policy).bytes(budget, context)}


def summarise(lm: "LanguageModel", tokens: list[Token], requested: dict[str, float]) -> Reply:
    """The reply that a finished stream amounts to; requested: of `asked_for`."""
    ids = [token.id for token in tokens]
    text = "" if lm.tokenizer is None else str(lm.tokenizer.decode(ids, skip_special_tokens=True))
    return Reply(text, tokens, compute(tokens, requested))


def compute(tokens: list[Token], requested: dict[str, float]) -> Compute:
    """What a reply's tokens spent, beside what was asked for."""
    counted = [token for token in tokens if token.controllable]
    realised = {axis: _mean([token.realised[axis] for token in counted]) for axis in AXES}
    realised["net"] = sum(realised.values()) / 3
    realised["bytes"] = _mean([token.cost for token in counted])
    return Compute(requested, realised, len(tokens[1:]) - len(counted))


def stream(
    lm: "LanguageModel",
    ids: torch.Tensor,
    budget: BudgetLike = None,
    policy: str | AnyPolicy | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
    max_length: int | None = None,
    stop_strings: str | list[str] | None = None,
    session: Session | None = None,
    **sampling: Any,
) -> Iterator[Token]:
    """Generate token by token from ids [1, C].

    Args:
        budget: what the steps may spend on average, in any form of `LanguageModel.budget`: ``0.7`` of the dense step's
            bytes, ``"keep=0.6"``, ``"attention=0.4,mlp=0.8"``, ``"ms=4.5"`` or a `Budget`; None: everything.
        policy: ``policy`` (the loaded one), ``dense``, ``static`` or ``random``, or a policy itself; by default the
            loaded one; without one, ``static`` where there is a budget, else ``dense``.
        max_new_tokens: longest reply; by default 128.
        max_length: the same, counted with the prompt.
        stop_strings: texts after any of which the reply ends; it still contains them.
        session: one row that has read the first tokens of ids, at least one less than all, and goes on from there; by
            default a new one. It must not be used afterwards.
        sampling: transformers' generation options in `solm.runtime.sampling.SUPPORTED` (do_sample, temperature, top_p,
            top_k, repetition_penalty, ...), carried out by its own processors. Greedy by default.

    Raises:
        BudgetError: a budget that cannot be read or met.
        ContextLengthError: prompt and new tokens exceed the model's context.
        SolmError: an option that is unknown or not supported, or an impossible length.
    """
    context = seen_on_average(ids, max_new_tokens, max_length)
    max_new_tokens = _longest(ids.shape[1], max_new_tokens, max_length)
    stops = [stop_strings] if isinstance(stop_strings, str) else stop_strings or []
    if stops and lm.tokenizer is None:
        raise SolmError("stop_strings need a tokenizer; pass one to attach")
    if not all(isinstance(stop, str) and stop for stop in stops):
        raise SolmError(f"stop_strings must be texts that are not empty, got {stop_strings!r}")
    check_length(ids.shape[1], max_new_tokens, lm.context)
    decides = chosen_policy(lm, policy, budget)
    target = lm.budget(budget, context, decides)
    sampler = Sampler(lm, ids, seed, sampling)
    if session is None:
        session = lm.session(capacity=ids.shape[1] + max_new_tokens)
    logits = session.prefill(ids[:, int(session.lengths[0]) if session.rows else 0 :])
    session.control(decides, target.tensor(1), max_new_tokens, sampler.generator)
    overhead = lm.overhead(decides)
    text, said = TextStream(lm.tokenizer), ""
    action, realised, controllable = decides.space.actions[-1], [1.0, 1.0, 1.0], False
    for seen in range(ids.shape[1], ids.shape[1] + max_new_tokens):
        chosen = sampler.choose(logits[0])
        piece = text.push(chosen)
        cost = lm.step_cost(realised, seen, overhead)
        yield Token(chosen, piece, action.tag, dict(zip(AXES, realised, strict=True)), cost, controllable)
        said += piece if stops else ""
        if chosen in sampler.stops or len(text.ids) == max_new_tokens or any(stop in said for stop in stops):
            return
        found = session.step(torch.tensor([chosen]), approximate_tail=sampler.takes_largest)
        assert found.actions is not None
        logits = found.logits[:, 0]
        action, realised = decides.space.actions[found.actions.tolist()[0][0]], found.realised.tolist()[0][0]
        controllable = seen >= lm.sparsity.always_read


def _longest(prompt: int, max_new_tokens: int | None, max_length: int | None) -> int:
    """How many tokens a reply to `prompt` tokens may have."""
    if max_length is not None:
        if max_new_tokens is not None:
            raise SolmError("max_new_tokens and max_length say the same thing twice; give one of them")
        if max_length <= prompt:
            raise SolmError(f"max_length must be above the {prompt} tokens of the prompt, got {max_length}")
        return max_length - prompt
    longest = 128 if max_new_tokens is None else max_new_tokens
    if longest < 1:
        raise SolmError(f"max_new_tokens must be at least 1, got {longest}")
    return longest


def check_length(prompt: int, new: int, context: int | None) -> None:
    """Raises `ContextLengthError` where `prompt` tokens and `new` ones exceed the model's context."""
    if context is not None and prompt + new > context:
        raise ContextLengthError(f"a prompt of {prompt} and {new} new tokens exceed this model's context of {context}")


def _mean(values: list[float]) -> float:
    """Mean, 1 (dense) where no step was controllable."""
    return sum(values) / len(values) if values else 1.0
