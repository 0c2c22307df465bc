"""The arm `teal`: magnitude thresholds on channels in place of an exact top-k (TEAL, arXiv 2408.14690)."""

import torch

from solm.core.actions import ActionSpace
from solm.core.errors import SolmError
from solm.core.thresholds import MLP_SITES, PERCENTAGES
from solm.evaluation.arms import Arm
from solm.evaluation.baselines import BaselineRequest
from solm.policies.schedules import Paced

_TEXTS = 16


def teal(request: BaselineRequest) -> Arm:
    """A constant MLP keep rate by thresholds, every layer alike; the other axes mix two levels.

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
        thresholds = lm.backend.channel_thresholds(windows, max(plain.sites, MLP_SITES))
    return Arm(Paced(fine), plain.model_copy(update={"thresholds": thresholds}))
