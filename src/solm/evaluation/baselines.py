"""Baselines by name: what an evaluation can compare a policy with besides uniform, allocated and random schedules."""

from dataclasses import dataclass
from importlib import import_module

from solm.core.actions import FULL_BITS, ActionSpace
from solm.core.errors import SolmError
from solm.data.windows import TokenStream
from solm.evaluation.arms import Arm
from solm.policies.schedules import Static
from solm.runtime.language_model import LanguageModel


@dataclass(frozen=True)
class BaselineRequest:
    """What a baseline is made from.

    tuning: text to measure thresholds on, which is not evaluated. context: tokens of a prompt.
    """

    lm: LanguageModel
    space: ActionSpace
    tuning: TokenStream | None = None
    context: int = 512
    seed: int = 0


def constant(request: BaselineRequest) -> Arm:
    """Exactly the average on every axis at every step, whether or not `space` has such a level: on the attention axis
    this is Quest at a constant budget, on the MLP's an exact top-k."""
    space = request.space
    halved = request.lm.sparsity.bits_site == "weights"  # nothing lies between all bits and the high half
    fine = ActionSpace(
        attention=_percents(space.attention[0]), mlp=_percents(space.mlp[0]),
        bits=space.bits if halved else tuple(range(space.bits[0], FULL_BITS + 1)),
    )  # fmt: skip
    return Arm(Static(fine), request.lm.sparsity.exact)


def _percents(lowest: float) -> tuple[float, ...]:
    return tuple(percent / 100 for percent in range(round(lowest * 100), 101))


# Functions from a `BaselineRequest` to an `Arm`, by module: those of research are imported when they are asked for.
BASELINES = {
    "constant": "solm.evaluation.baselines:constant",
    "teal": "solm.evaluation.channel_thresholds:teal",
    "drift": "solm.research.controllers:drift",
    "entropy": "solm.research.controllers:entropy",
    "per-request": "solm.research.per_request:per_request",
}


def baseline(name: str, request: BaselineRequest) -> Arm:
    """The baseline called `name`; raises `SolmError` for an unknown one, or where it lacks what it needs."""
    if name not in BASELINES:
        raise SolmError(f"unknown baseline {name!r}; choose among {', '.join(BASELINES)}")
    module, _, function = BASELINES[name].partition(":")
    arm: Arm = getattr(import_module(module), function)(request)
    return arm
