"""The policy network: steps equal one pass, memory is bounded, a new network gives its prior."""

import pytest
import torch

from helpers.policies import scrambled
from solm.policies.network import Features, NetworkConfig, PolicyNetwork


def random_features(rows: int, steps: int, actions: int = 8, hidden: int = 64) -> Features:
    generator = torch.Generator().manual_seed(5)
    return Features(
        torch.randn(rows, steps, hidden, generator=generator),
        torch.randn(rows, steps, hidden, generator=generator),
        torch.rand(rows, steps, 8, generator=generator),
        torch.randint(actions, (rows, steps), generator=generator),
        torch.randn(rows, steps, actions, generator=generator),
    )


@pytest.mark.parametrize("memory", [3, 64])
def test_steps_equal_one_pass_and_memory_is_bounded(memory):
    network = scrambled(NetworkConfig(base_hidden=64, actions=8, width=32, memory=memory))
    features = random_features(2, 20)
    with torch.no_grad():
        together, _ = network(features, network.start(2, torch.device("cpu")))
        state, steps = network.start(2, torch.device("cpu")), []
        for t in range(20):
            logits, state = network(Features(*(part[:, t : t + 1] for part in features)), state)
            steps.append(logits)
            assert state.keys.shape[2] == min(t + 1, memory)
    torch.testing.assert_close(torch.cat(steps, 1), together, atol=1e-5, rtol=1e-5)


def test_positions_are_relative_so_a_run_may_start_anywhere():
    network = scrambled(NetworkConfig(base_hidden=64, actions=8, width=32, memory=4))
    features = random_features(1, 40)
    with torch.no_grad():
        whole, _ = network(features, network.start(1, torch.device("cpu")))
        late = Features(*(part[:, 30:] for part in features))
        tail, _ = network(late, network.start(1, torch.device("cpu")))
    torch.testing.assert_close(tail[:, 4:], whole[:, 34:], atol=1e-5, rtol=1e-5)


def test_rows_of_a_memory_can_be_repeated_and_selected():
    network = scrambled(NetworkConfig(base_hidden=64, actions=8, width=32))
    features = random_features(2, 6)
    with torch.no_grad():
        _, state = network(Features(*(part[:, :5] for part in features)), network.start(2, torch.device("cpu")))
        last = Features(*(part[:, 5:] for part in features))
        one, _ = network(last, state)
        three, _ = network(
            Features(*(part.repeat_interleave(3, 0) for part in last)), state.rows(torch.arange(2).repeat_interleave(3))
        )
        second, _ = network(Features(*(part[1:] for part in last)), state.rows(torch.tensor([1])))
    torch.testing.assert_close(three, one.repeat_interleave(3, 0))
    torch.testing.assert_close(second, one[1:])


def test_a_new_policy_is_its_prior():
    network = PolicyNetwork(NetworkConfig(base_hidden=64, actions=8, width=32)).eval()
    features = random_features(2, 4)
    logits, _ = network(features, network.start(2, torch.device("cpu")))
    torch.testing.assert_close(logits, features.prior)
