"""Fine-tuning a fitted policy's network on known losses: by policy gradient on counterfactual schedules, as GRPO does,
or by regression. Both start from the same network and see the same texts, in the same order, as often."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from foresight import BASE, Look, saving

_UPDATES, _TEXTS, _DRAWS = (0, 25, 100, 400), 8, 16
"""Updates after which a network is judged, texts of an update, and schedules of each that are compared."""
_RATE, _TEMPERATURE, _CLIP = 1e-4, 0.005, 5.0
"""Adam's rate, nats by which a score must be better to be e times as likely, and the largest advantage."""

Loss = Callable[[torch.Tensor, dict[str, torch.Tensor], torch.Generator], torch.Tensor]


def gradient(seen: torch.Tensor, known: dict[str, torch.Tensor], draw: torch.Generator) -> torch.Tensor:
    """Minus the advantage of drawn shares times their log-probability. seen: sensitivities [W, T].

    A token takes a share with a probability that falls with the predicted loss plus price; what it is rewarded for is
    minus its own loss and price, above the mean of the draws for the same token. Prices are those at which an average
    token takes some share between the lowest and the highest.
    """
    curve, rate = known["curve"], known["rate"]
    slopes = (curve[:-1] - curve[1:]) / (rate[1:] - rate[:-1])
    price = slopes[torch.randint(len(slopes), (len(seen), 1, 1), generator=draw)]
    chances = (-(seen[..., None] * curve + price * rate) / _TEMPERATURE).log_softmax(-1)
    drawn = torch.multinomial(chances.detach().exp().flatten(0, 1), _DRAWS, replacement=True, generator=draw)
    drawn = drawn.view(*seen.shape, _DRAWS)
    reward = -(known["loss"] + price * known["share"]).gather(-1, drawn)
    advantage = reward - reward.mean(-1, keepdim=True)
    return -((advantage / advantage.std()).clamp(-_CLIP, _CLIP) * chances.gather(-1, drawn)).mean()


def regression(seen: torch.Tensor, known: dict[str, torch.Tensor], draw: torch.Generator) -> torch.Tensor:
    """Poisson deviance, up to a constant, of the losses from sensitivities times the average loss."""
    mean = seen[..., None] * known["curve"]
    return (mean - known["loss"] * mean.log()).mean()


METHODS: dict[str, Loss] = {"gradient": gradient, "regression": regression}


def tuned(network: torch.nn.Module, streams: list[torch.Tensor], looks: list[Look]) -> dict[str, Any]:
    """By method and number of updates what the network saves, see `foresight.saving`.

    streams: [W, T, H], what enters the policy's layer; looks: from there; both on texts to learn from and to judge on.
    """
    torch.manual_seed(0)
    before = torch.tensor([1.0, BASE, 1.0])
    ours, theirs = looks
    known = {name: torch.from_numpy(getattr(ours, name)).float() for name in ("loss", "share")}
    averages = {"curve": known["loss"].mean((0, 1)), "rate": known["share"].mean((0, 1))}

    def sensitivities(made: torch.nn.Module, stream: torch.Tensor) -> torch.Tensor:
        return made(stream.float(), before.expand(*stream.shape[:2], 3))[..., 1].clamp(min=1e-3)

    found: dict[str, Any] = {}
    for name, loss in METHODS.items():
        made, draw = copy.deepcopy(network).eval(), torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam([*made.read.parameters(), *made.head.parameters()], lr=_RATE)  # type: ignore[union-attr]
        found[name] = {}
        for update in range(_UPDATES[-1] + 1):
            if update in _UPDATES:
                with torch.no_grad():
                    guess = sensitivities(made, streams[1]).double().numpy()
                told = np.corrcoef(np.log(guess).ravel(), np.log(theirs.sensitivity).ravel())[0, 1]
                found[name][str(update)] = saving([ours], [theirs], [guess]) | {"explained": float(told**2)}
            some = torch.randint(len(streams[0]), (_TEXTS,), generator=draw)
            now = {key: values[some] for key, values in known.items()} | averages
            optimizer.zero_grad()
            loss(sensitivities(made, streams[0][some]), now, draw).backward()
            optimizer.step()
    return found
