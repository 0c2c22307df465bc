"""The arm `per-request`: the policy's network is asked once, about the prompt, and its split holds for the reply."""

import torch
from torch import nn

from solm.core.errors import SolmError
from solm.evaluation.arms import Arm
from solm.evaluation.baselines import BaselineRequest
from solm.policies.priced import LevelCosts, equal_prices, price_curves
from solm.policies.schedules import Static
from solm.policies.value_policy import ValuePolicy
from solm.runtime.language_model import LanguageModel


def per_request(request: BaselineRequest) -> Arm:
    """Two levels mixed at the net keep that the policy realised, split over axes by the prompt's mean sensitivities.

    What it lacks are decisions per token: on a space of one axis it is `allocated` (or `uniform`) itself.
    Raises `SolmError` without a policy trained with --method values, or without a transformers model.
    """
    from solm.backends.torch.families import decoder_layers  # takes seconds, because of transformers

    lm = request.lm
    policy = None if lm.trained is None else lm.trained.policy()
    if not isinstance(policy, ValuePolicy):
        raise SolmError("the arm per-request asks a policy trained with --method values; give one with --policy")
    network, space, layers = policy.network, policy.space, decoder_layers(lm.model)

    def split(prompts: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        hidden = prompt_states(lm, prompts, layers[network.config.layer])
        with torch.no_grad():
            dense = torch.ones(*hidden.shape[:2], 3, device=hidden.device)
            asked = policy.level_costs(network(hidden, dense).mean(1))
        rows = torch.arange(len(target)) // (len(target) // len(prompts))
        shares = []
        for row, net in zip(rows.tolist(), target.mean(1).tolist(), strict=True):
            costs = LevelCosts(*(cost[row : row + 1] for cost in asked))
            shares.append(equal_prices(price_curves(space, costs), net).shares)
        return torch.tensor(shares, dtype=torch.float64)

    return Arm(Static(space), retarget=split)


def prompt_states(lm: LanguageModel, prompts: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """The residual stream [N, C, H] that enters `layer` when prompts [N, C] are read densely."""
    seen: list[torch.Tensor] = []

    def keep(module: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    hook = layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        lm.session(capacity=prompts.shape[1]).prefill(prompts)
    finally:
        hook.remove()
    return seen[0]
