"""AdamW whose learning rate rises and falls once, without `torch.optim`'s classes.

Making one of those loads torch's compiler, which takes two seconds and 150 MB. The update itself is torch's.
"""

import math

import torch
from torch.optim.adamw import adamw

_RISING = 0.1
"""Part of the steps in which the learning rate rises."""
_FIRST, _LAST = 1 / 25, 1 / 25e4
"""Learning rates of the first and of the last step, as parts of the highest."""
_LEAST_MOMENTUM, _MOST_MOMENTUM = 0.85, 0.95
"""At the highest learning rate, and at the first and the last one."""
_SQUARES, _EPSILON = 0.999, 1e-8


class OneCycleAdamW:
    """As `torch.optim.AdamW` under `torch.optim.lr_scheduler.OneCycleLR`, with the same defaults.

    parameters: float32 leaves. rate: the highest learning rate. steps: how often `step` is called.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], rate: float, decay: float, steps: int):
        self._parameters, self._rate, self._decay = parameters, rate, decay
        self._peak, self._end = _RISING * steps - 1, steps - 1
        self._done = 0
        self._means = [torch.zeros_like(parameter) for parameter in parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in parameters]
        self._counts = [torch.tensor(0.0) for _ in parameters]

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters that have gradients, and forget these."""
        rate, momentum = self._now()
        some = [index for index, parameter in enumerate(self._parameters) if parameter.grad is not None]
        adamw(
            [self._parameters[index] for index in some],
            [self._parameters[index].grad for index in some],  # type: ignore[misc]
            [self._means[index] for index in some],
            [self._squares[index] for index in some],
            [],
            [self._counts[index] for index in some],
            foreach=False, amsgrad=False, beta1=momentum, beta2=_SQUARES, lr=self._rate * rate,
            weight_decay=self._decay, eps=_EPSILON, maximize=False,
        )  # fmt: skip
        for index in some:
            self._parameters[index].grad = None
        self._done += 1

    def _now(self) -> tuple[float, float]:
        """The learning rate of the next step as a part of the highest, and its momentum."""
        if self._done < self._peak:
            part = self._done / self._peak
            return _between(_FIRST, 1, part), _between(_MOST_MOMENTUM, _LEAST_MOMENTUM, part)
        part = (self._done - self._peak) / (self._end - self._peak)
        return _between(1, _LAST, part), _between(_LEAST_MOMENTUM, _MOST_MOMENTUM, part)


def _between(first: float, last: float, part: float) -> float:
    """Along half a cosine."""
    return last + (first - last) / 2 * (1 + math.cos(math.pi * part))
