"""The paper's policy: what keeps a budget in reach, and policies on disk."""

import shutil

import pytest
import torch

from solm.core.errors import DamagedFileError, PolicyMismatchError, SolmError
from solm.paper.config import GRIDS
from solm.paper.network import Memory, NetworkConfig, PolicyNetwork
from solm.paper.policy import PaperPolicy, PolicyConfig, Rows, Situation, feasible

STEPS = 40


def walked(space, target, choose):
    """Averages [N, 3] after steps in which levels realise nominal shares, by actions of choose(rows, situation)."""
    count = len(target)
    shares = [torch.tensor(axis, dtype=torch.float64) for axis in (space.attention, space.mlp, space.bits)]
    shares[2] /= 16
    situation = Situation(tuple(axis.expand(count, -1) for axis in shares), torch.ones(count, 3, dtype=torch.bool))
    table, none = space.table / torch.tensor([1, 1, 16.0]), torch.zeros(count, 3, dtype=torch.float64)
    empty = torch.zeros(0)
    rows = Rows(empty, target, STEPS, none, none.long(), torch.zeros(count, dtype=torch.int64), Memory(empty, empty))
    for _ in range(STEPS):
        actions = choose(rows, situation)
        rows = rows.after(actions, empty, table[actions], situation.controllable)
    return rows.spent / rows.counted


@pytest.mark.parametrize("name", ["joint-8", "joint-27", "joint-336", "mlp-40", "bits-5-10"])
def test_any_feasible_choice_keeps_the_budget(name):
    space, draw = GRIDS[name], torch.Generator().manual_seed(0)
    low, high = torch.tensor(space.ranges, dtype=torch.float64).unbind(1)
    target = low + torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64)[:, None] * (high - low)
    axes = (space.attention, space.mlp, [bits / 16 for bits in space.bits])
    quantum = max(b - a for axis in axes for a, b in zip(axis, [*axis[1:], axis[-1]], strict=True))

    def anything(rows, situation):
        allowed = feasible(rows, situation)
        assert allowed.any(1).all()
        return torch.multinomial(allowed.double(), 1, generator=draw)[:, 0]

    assert (walked(space, target, anything) - target).abs().max() <= quantum / STEPS + 1e-6


@pytest.fixture
def policy(tiny_lm):
    sizes = NetworkConfig(base_hidden=64, actions=8, width=16, heads=2)
    config = PolicyConfig(base=tiny_lm.identity, space=GRIDS["joint-8"], sparsity=tiny_lm.sparsity, network=sizes)
    return PaperPolicy(config, PolicyNetwork(sizes))


def test_a_policy_is_the_same_after_saving_and_damage_is_one_typed_error(policy, tmp_path):
    policy.save(tmp_path / "a")
    loaded = PaperPolicy.load(tmp_path / "a")
    assert loaded.config.space == policy.config.space
    for name, value in policy.network.state_dict().items():
        assert torch.equal(value, loaded.network.state_dict()[name])
    for name in ("policy.safetensors", "paper_policy.json"):
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        content = bytearray((tmp_path / "b" / name).read_bytes())
        content[-5] ^= 1
        (tmp_path / "b" / name).write_bytes(content)
        with pytest.raises(DamagedFileError, match="damaged"):
            PaperPolicy.load(tmp_path / "b")
    with pytest.raises(SolmError, match="no file"):
        PaperPolicy.load(tmp_path / "none")


def test_a_network_for_another_space_is_refused(policy, tmp_path):
    policy.config = policy.config.model_copy(update={"space": GRIDS["joint-27"]})
    policy.save(tmp_path)
    with pytest.raises(PolicyMismatchError, match="the network has 8 actions, its action space 27"):
        PaperPolicy.load(tmp_path)
