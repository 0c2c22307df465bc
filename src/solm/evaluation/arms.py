"""Arms of a comparison: who decides, and how what was decided is carried out."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from solm.backends.session import AnyPolicy
from solm.core.actions import FULL_BITS, ActionSpace
from solm.core.cost import equal_mlp
from solm.core.errors import SolmError
from solm.core.sparsity import KNOTS, PERCENTAGES, Allocation, SparsityConfig
from solm.evaluation.texts import TokenStream
from solm.policies.schedules import Paced, Static, static
from solm.runtime.language_model import LanguageModel

_TEXTS = 16
"""Texts that thresholds are measured on."""


@dataclass(frozen=True)
class Arm:
    """One way to spend a budget. sparsity: how its actions are carried out, where it is not as the model does.
    order: seed of a random order in which every text takes the policy's actions; None: as they were decided."""

    policy: AnyPolicy
    sparsity: SparsityConfig | None = None
    order: int | None = None


def static_arms(lm: LanguageModel, space: ActionSpace) -> dict[str, Arm]:
    """Two levels mixed to meet a budget: `uniform`, every layer alike with exact numbers of channels, and, where the
    model has an allocation, `allocated`, by the allocation and the thresholds that the model has."""
    if lm.sparsity.allocation is None:
        return {"uniform": Arm(Static(space), lm.sparsity.exact)}
    plain = lm.sparsity.exact.under(None)
    # Without the allocation, levels of one name realise other shares.
    alike = sorted({equal_mlp(level, lm.sparsity, plain, lm.shapes) for level in space.mlp})
    same = space.model_copy(update={"mlp": tuple(alike)})
    return {"allocated": Arm(static(space, lm.sparsity)), "uniform": Arm(Static(same), plain)}


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


def random(request: BaselineRequest) -> Arm:
    """The actions of the static schedule, which mixes two levels, in a random order."""
    return Arm(static(request.space, request.lm.sparsity), order=request.seed)


def teal(request: BaselineRequest) -> Arm:
    """A constant MLP keep rate by magnitude thresholds on channels in place of an exact top-k (TEAL, arXiv 2408.14690),
    every layer alike; the other axes mix two levels.

    The thresholds are the model's own where a policy brings some, and else measured on the tuning text. The rate is an
    average: on single tokens more or fewer channels pass, what passed is what is realised, and the rate of the steps to
    come makes up for it. It need not be a level of the space, as a threshold can be anything. Raises `SolmError`
    without thresholds and tuning text.
    """
    lm, space = request.lm, request.space
    rates = tuple(percent / 100 for percent in range(1, PERCENTAGES))
    fine = ActionSpace(attention=space.attention, mlp=rates, bits=space.bits)
    plain, thresholds = lm.sparsity.under(None), lm.sparsity.thresholds
    if thresholds is None:
        if request.tuning is None:
            raise SolmError("the arm teal needs text to measure its thresholds on: give --tuning")
        windows = request.tuning.spaced(_TEXTS, request.context, torch.Generator().manual_seed(request.seed))
        thresholds = lm.backend.channel_thresholds(windows, plain.threshold_sites)
    return Arm(Paced(fine), plain.model_copy(update={"thresholds": thresholds}))


def upper_bits(request: BaselineRequest) -> Arm:
    """Steps that read only the upper bits of the MLP's weights, and exact numbers of channels, in every layer alike;
    where the budget allows for more, some steps read everything. Raises `SolmError` for a model whose weights cannot be
    read in part."""
    lm, space = request.lm, request.space
    plain = lm.sparsity.exact.under(None)
    if plain.bits_site != "weights" or plain.hidden_power != 2:
        raise SolmError("the arm upper-bits needs a policy that chooses weight bits, or --sparsity nested")
    even = tuple(knot / (KNOTS - 1) for knot in range(KNOTS))
    never, squares = (0.0,) * (KNOTS - 1) + (1.0,), tuple(share**2 for share in even)
    curves = {"attention": even, "mlp": even, "hidden": squares, "input_bits": never, "hidden_bits": never}
    if plain.projection_part:
        curves |= {"qkv": even, "out": even}
    alike = Allocation(**{name: (curve,) * lm.shapes.layers for name, curve in curves.items()})
    fine = ActionSpace(attention=_percents(space.attention[0]), mlp=_percents(space.mlp[0]))
    return Arm(Static(fine), plain.under(alike))


BASELINES: dict[str, Callable[[BaselineRequest], Arm]] = {
    "constant": constant, "random": random, "teal": teal, "upper-bits": upper_bits,
}  # fmt: skip
"""What an evaluation can compare a policy with besides uniform and allocated schedules."""
