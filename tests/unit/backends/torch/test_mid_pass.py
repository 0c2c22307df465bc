"""Decisions in the middle of a pass: what they see, what they govern, and what they spend."""

import pytest
import torch

import solm
from helpers.models import CONTEXT, STEPS, tiny_model, tokens
from helpers.policies import SPACE, SPARSITY, network
from helpers.sessions import scored_under
from solm.backends.results import SplitSchedule
from solm.backends.torch.backend import TorchBackend
from solm.policies.value_policy import ValuePolicy


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_mid_pass_decision_sees_its_layers_input_and_controls_the_layers_from_it_on(family):
    model, ids = tiny_model(family), tokens(2, CONTEXT + STEPS + 1)
    states = model(ids[:, :-1], output_hidden_states=True, use_cache=False).hidden_states
    dense, low = (torch.tensor(a, dtype=torch.float64).expand(2, STEPS, 3) for a in ((1, 1, 16.0), (0.3, 0.5, 5.0)))
    control = TorchBackend(model)
    session = control.session(SPARSITY)
    session.prefill(ids[:, :CONTEXT])
    mixed = session.fork(1).score(ids[:, CONTEXT:], SplitSchedule(1, dense, low))
    torch.testing.assert_close(mixed.stream, states[1][:, CONTEXT:], rtol=1e-4, atol=1e-5)
    whole = session.fork(1).score(ids[:, CONTEXT:], low)
    torch.testing.assert_close(mixed.realised, (1 + whole.realised) / 2)
    assert (mixed.log_probabilities != whole.log_probabilities).any()
    from_the_start = session.fork(1).score(ids[:, CONTEXT:], SplitSchedule(0, dense, low))
    torch.testing.assert_close(from_the_start.log_probabilities, whole.log_probabilities, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(from_the_start.realised, whole.realised)
    nothing = session.fork(1).score(ids[:, CONTEXT:], SplitSchedule(1, low, low))
    assert torch.equal(nothing.log_probabilities, whole.log_probabilities)
    control.detach()


@pytest.mark.parametrize("layer", [0, 1])
def test_deciding_in_one_pass_equals_deciding_step_by_step(layer):
    with solm.attach(tiny_model("llama"), sparsity=SPARSITY) as lm:
        ids = tokens(3, CONTEXT + STEPS + 1)
        target = torch.tensor([[0.6, 0.7, 0.5], [0.5, 0.5, 0.4], [0.9, 0.9, 0.9]], dtype=torch.float64)
        policy = ValuePolicy(network(layer).double(), SPACE)
        session = lm.session()
        session.prefill(ids[:, :CONTEXT])
        whole = scored_under(session.fork(1), policy, ids[:, CONTEXT:], target)
        stepped = session.fork(1)
        stepped.control(policy, target, STEPS)
        logits, taken = [], []
        for step in range(STEPS):
            found = stepped.step(ids[:, CONTEXT + step])
            logits.append(found.logits[:, 0].log_softmax(-1).gather(1, ids[:, CONTEXT + step + 1, None])[:, 0])
            taken.append(found.actions)
        assert torch.equal(torch.cat(taken, 1), whole.actions)
        assert len(whole.actions.unique()) > 3
        torch.testing.assert_close(torch.stack(logits, 1).float(), whole.log_probabilities)
        torch.testing.assert_close(stepped.ledger.spent, whole.realised.sum(1))
