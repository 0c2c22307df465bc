"""Decisions in the engine equal those of the policy in Python: same actions, same sums."""

import copy
import shutil

import pytest
import torch

from helpers.engine import engine_of
from helpers.models import tiny_model, tokens
from helpers.policies import BENDS, profile_of, sparsity_of, with_hidden
from solm.backends.cpu.backend import CpuSession
from solm.backends.torch.backend import TorchBackend
from solm.core.actions import ActionSpace
from solm.core.sparsity import SparsityConfig
from solm.policies.schedules import static
from solm.policies.value_network import ValueNetwork
from solm.policies.value_policy import ValueConfig, ValuePolicy

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
SPACES = {
    "joint": ActionSpace(attention=(0.1, 0.4, 1.0), mlp=(0.4, 0.7, 1.0), bits=(4, 8, 16)),
    "one axis": ActionSpace(mlp=(0.4, 0.5, 0.8, 1.0)),
    "two axes": ActionSpace(attention=(0.2, 1.0), bits=(5, 16)),
}


SPARSITY = SparsityConfig(window=16)


@pytest.fixture(scope="module")
def engine():
    control = TorchBackend(tiny_model("llama", torch.float32, num_hidden_layers=4))
    yield control, engine_of(control.model, SparsityConfig(window=16), "float32")
    control.detach()


def policy_of(space: ActionSpace, layer: int) -> ValuePolicy:
    """A policy whose sensitivities differ widely from token to token."""
    torch.manual_seed(3)
    own = tuple(0.9 - 0.2 * level for level in range(len(space.attention) - 1))
    config = ValueConfig(base_hidden=64, layer=layer, grid=space, width=32, kept_sensitivities=64, attention_own=own)
    network = ValueNetwork(config).eval()
    with torch.no_grad():
        network.head.weight.normal_(0, 2)
        network.training_sensitivities.copy_(torch.rand(64, 3) * 2)
        network.trust.copy_(torch.tensor([1.0, 0.9, 0.7]))
    return ValuePolicy(network, space)


def limits_of_any_text(engine):
    """Thresholds that suit the engine's model."""
    return engine.channel_thresholds(tokens(2, 64, seed=6))


def in_python(policy):
    """The same policy, for which the engine does not decide, because it is of another class."""
    found = copy.copy(policy)
    found.__class__ = type("InPython", (type(policy),), {})
    return found


def both(engine, policy, target, horizon, rows=3, context=30, sparsity=SPARSITY):
    """The same rows twice: decided in Python, and in the engine."""
    parent = CpuSession(engine[1], sparsity)
    parent.prefill(tokens(rows, context))
    sessions = []
    for some in (in_python(policy), policy):
        session = parent.fork(1)
        session.control(some, target, horizon)
        sessions.append(session)
    return sessions


@pytest.mark.parametrize(
    ("dealt", "name", "layer"),
    [
        ("evenly", "joint", 1),
        ("evenly", "one axis", 0),
        ("evenly", "two axes", 3),
        ("by an allocation", "joint", 0),
        ("hidden channels apart", "joint", 3),
        ("weights' bits", "joint", 1),
        ("thresholds", "joint", 1),
        ("evenly", "joint", None),
        ("by an allocation", "one axis", None),
        ("thresholds", "joint", None),
    ],
)
def test_decisions_equal_the_policys(engine, name, layer, dealt):
    """layer: of a value policy; None: the static schedule."""
    sparsity = {
        "evenly": SPARSITY, "by an allocation": sparsity_of(0.9, -0.6, -0.7, 0.4),
        "hidden channels apart": SparsityConfig(
            window=16, hidden_power=2, input_part=0.7, allocation=with_hidden(profile_of(*BENDS), 0.5, 0.2, 0.1, -0.8)
        ),
        "weights' bits": SPARSITY.model_copy(update={"bits_site": "weights"}),
        "thresholds": SPARSITY.model_copy(update={"thresholds": limits_of_any_text(engine[1])}),
    }[dealt]  # fmt: skip
    space = SPACES[name]
    policy = static(space, sparsity) if layer is None else policy_of(space, layer)
    if sparsity.bits_site == "weights":
        engine = engine[0], engine_of(engine[0].model, sparsity, "nested")
    lows = torch.tensor([low for low, _ in space.ranges], dtype=torch.float64)
    target = torch.stack([lows + part * (1 - lows) for part in (0.1137, 0.4071, 0.7919)])
    python, native = both(engine, policy, target, 48, sparsity=sparsity)
    following = tokens(3, 64, seed=9)
    taken: list[list[torch.Tensor]] = [[], []]
    # Steps one by one, several at once, and beyond the horizon.
    for first, last in [*((step, step + 1) for step in range(20)), (20, 45), (45, 46), (46, 64)]:
        for session, actions in zip((python, native), taken, strict=True):
            actions.append(session.extend(following[:, first:last]).actions)
    expected, found = (torch.cat(actions, 1) for actions in taken)
    assert len(expected.unique()) > len(space) // 2 or layer is None
    assert native._own_groups
    assert not python._own_groups
    assert torch.equal(expected, found)
    assert torch.equal(python.ledger.steps, native.ledger.steps)
    torch.testing.assert_close(python.ledger.spent, native.ledger.spent)
