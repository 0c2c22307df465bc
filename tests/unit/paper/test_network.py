"""The policy network: steps equal one pass, memory is bounded, a new network is uniform."""

import pytest
import torch

from solm.paper.network import Features, NetworkConfig, PolicyNetwork


def scrambled(config: NetworkConfig) -> PolicyNetwork:
    """A network with no weight left at zero."""
    torch.manual_seed(0)
    network = PolicyNetwork(config).eval()
    for parameter in network.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return network


def random_features(rows: int, steps: int, actions: int = 8, hidden: int = 64) -> Features:
    generator = torch.Generator().manual_seed(5)
    return Features(
        torch.randn(rows, steps, hidden, generator=generator),
        torch.randn(rows, steps, hidden, generator=generator),
        torch.rand(rows, steps, 8, generator=generator),
        torch.randint(actions, (rows, steps), generator=generator),
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


def test_a_new_policy_is_uniform():
    network = PolicyNetwork(NetworkConfig(base_hidden=64, actions=8, width=32)).eval()
    logits, _ = network(random_features(2, 4), network.start(2, torch.device("cpu")))
    assert logits.std() == 0
