"""Baselines by name: what an evaluation can compare a policy with besides static and random schedules."""

from collections.abc import Callable
from dataclasses import dataclass

from solm.backends.torch.adaptive import Rule
from solm.core.actions import FULL_BITS, ActionSpace
from solm.core.errors import SolmError
from solm.data.windows import TokenStream
from solm.evaluation.arms import Arm
from solm.evaluation.channel_thresholds import thresholds
from solm.policies.schedules import Static
from solm.research.controllers import DriftController, EntropyController
from solm.research.per_request import per_request
from solm.research.top_p import TopPController
from solm.runtime.language_model import LanguageModel


@dataclass(frozen=True)
class _Request:
    lm: LanguageModel
    space: ActionSpace
    tuning: TokenStream | None
    context: int
    seed: int


def _constant(asked: _Request) -> Arm:
    """Exactly the average on every axis at every step, whether or not `space` has such a level: on the attention axis
    this is Quest at a constant budget, on the MLP's an exact top-k."""
    space = asked.space
    halved = asked.lm.sparsity.bits_site == "weights"  # nothing lies between all bits and the high half
    fine = ActionSpace(
        attention=_percents(space.attention[0]), mlp=_percents(space.mlp[0]),
        bits=space.bits if halved else tuple(range(space.bits[0], FULL_BITS + 1)),
    )  # fmt: skip
    return Arm(Static(fine))


def _percents(lowest: float) -> tuple[float, ...]:
    return tuple(percent / 100 for percent in range(round(lowest * 100), 101))


def _top_p(asked: _Request) -> Arm:
    sparsity = asked.lm.sparsity
    if sparsity.criterion != "pages" or sparsity.window == 0:
        raise SolmError("the arm top-p chooses among pages outside of sinks and window: it needs the default sparsity")
    return Arm(TopPController(asked.space), rule=lambda: Rule(top_p=True))


def _teal(asked: _Request) -> Arm:
    if asked.tuning is None:
        raise SolmError("the arm teal needs text to calibrate its thresholds on: give --tuning")
    return thresholds(asked.lm, asked.tuning, asked.space, asked.context, asked.seed)


BASELINES: dict[str, Callable[[_Request], Arm]] = {
    "constant": _constant,
    "drift": lambda asked: Arm(DriftController(asked.space)),
    "entropy": lambda asked: Arm(EntropyController(asked.space, asked.lm.model.get_output_embeddings())),
    "per-request": lambda asked: per_request(asked.lm),
    "teal": _teal,
    "top-p": _top_p,
}


def baseline(
    name: str,
    lm: LanguageModel,
    space: ActionSpace,
    tuning: TokenStream | None = None,
    context: int = 512,
    seed: int = 0,
) -> Arm:
    """The baseline called `name`; raises `SolmError` for an unknown one, or where it lacks what it needs."""
    if name not in BASELINES:
        raise SolmError(f"unknown baseline {name!r}; choose among {', '.join(BASELINES)}")
    return BASELINES[name](_Request(lm, space, tuning, context, seed))
