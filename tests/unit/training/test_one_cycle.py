"""The optimiser of the regression is torch's."""

import copy
import subprocess
import sys

import pytest
import torch

from solm.training.one_cycle import OneCycleAdamW


@pytest.mark.parametrize("steps", [1, 7, 11, 60])
def test_updates_are_those_of_torch(steps: int) -> None:
    torch.manual_seed(0)
    ours = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    theirs = copy.deepcopy(ours)
    mine = OneCycleAdamW(list(ours.parameters()), 0.02, 0.5, steps)
    adamw = torch.optim.AdamW(theirs.parameters(), lr=0.02, weight_decay=0.5)
    rate = torch.optim.lr_scheduler.OneCycleLR(adamw, 0.02, total_steps=steps, pct_start=0.1)
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        inputs, wanted = torch.randn(16, 5, generator=draw), torch.randn(16, 2, generator=draw)
        (ours(inputs) - wanted).square().mean().backward()
        mine.step()
        adamw.zero_grad()
        (theirs(inputs) - wanted).square().mean().backward()
        adamw.step()
        rate.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_ten_steps_where_nothing_rises() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = OneCycleAdamW([weight], 0.1, 0.0, 10)
    for _ in range(10):
        weight.square().sum().backward()
        optimiser.step()
    assert weight.grad is None
    assert weight.abs().max() < 1


def test_weights_without_gradients_stay() -> None:
    used, unused = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimiser = OneCycleAdamW([used, unused], 0.1, 0.5, 4)
    used.sum().backward()
    optimiser.step()
    assert torch.equal(unused, torch.ones(3))
    assert not torch.equal(used, torch.ones(3))


def test_it_does_not_load_the_compiler() -> None:
    check = (
        "import sys, torch, solm.training.regression\n"
        "from solm.training.one_cycle import OneCycleAdamW\n"
        "weight = torch.nn.Parameter(torch.ones(3))\n"
        "weight.sum().backward()\n"
        "OneCycleAdamW([weight], 0.1, 0.5, 4).step()\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
