"""Training-free controllers: they keep budgets, and spend where their signal says."""

import pytest
import torch

from helpers.models import tokens
from helpers.sessions import scored_under
from solm.core.actions import ActionSpace
from solm.core.budget import Ledger
from solm.policies.protocol import Observation
from solm.research.controllers import DriftController, EntropyController

SPACE = ActionSpace(attention=(0.3, 1.0), mlp=(0.4, 0.7, 1.0), bits=(5, 16))


@pytest.mark.parametrize("kind", ["entropy", "drift"])
def test_budgets_are_kept(tiny_lm, kind):
    head = tiny_lm.model.get_output_embeddings()
    controller = EntropyController(SPACE, head) if kind == "entropy" else DriftController(SPACE)
    ids = tokens(3, 90 + 65)
    session = tiny_lm.session()
    session.prefill(ids[:, :90])
    target = torch.tensor([[0.9, 0.6, 0.7]], dtype=torch.float64).expand(3, 3)
    episode = scored_under(session.fork(1), controller, ids[:, 90:], target)
    assert (episode.realised.mean(1) - target).abs().max() < 0.03


def test_compute_goes_to_uncertain_tokens():
    controller = EntropyController(ActionSpace(mlp=(0.4, 1.0)), lambda hidden: hidden)
    sure, unsure = torch.tensor([[9.0, 0, 0, 0]]), torch.tensor([[1.0, 1, 1, 1]])
    state, ledger, taken = controller.start(1, torch.device("cpu")), Ledger.empty(1), []
    levels = tuple(torch.tensor([axis], dtype=torch.float64) for axis in ((1.0,), (0.4, 1.0), (1.0,)))
    target = torch.tensor([[1.0, 0.7, 1.0]], dtype=torch.float64)
    for step in range(40):
        seen = Observation(
            sure if step % 2 else unsure, None, target, ledger, levels, step, 40, torch.ones(1, 3, dtype=torch.bool),
            torch.zeros(1, dtype=torch.int64),
        )  # fmt: skip
        action, state = controller.act(seen, state, None)
        ledger = ledger.add(torch.tensor([[1.0, (0.4, 1.0)[int(action)], 1.0]]), seen.controllable)
        taken.append(int(action))
    assert taken[10::2] == [1] * 15
    assert taken[11::2] == [0] * 15
