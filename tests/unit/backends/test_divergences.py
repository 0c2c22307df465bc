"""How far predictions lie from dense ones: KL over the whole vocabulary, of forks against their parents."""

import shutil

import pytest
import torch

from helpers.engine import ACTIONS, pair
from helpers.models import keep_of, tiny_model, tokens
from solm.backends.torch.backend import TorchBackend


def kl(logits, reference):
    """By the definition, in float64."""
    ours, theirs = (torch.log_softmax(x.double(), -1) for x in (logits, reference))
    return (theirs.exp() * (theirs - ours)).sum(-1)


@pytest.mark.parametrize("backend", [0, 1], ids=["torch", "cpu"])
def test_scores_say_how_far_from_the_reference_they_are(backend):
    """In stretches, as long texts are scored, too; and the logits of all of them where asked for."""
    if backend and shutil.which("g++") is None:
        pytest.skip("no C++ compiler here")
    control = TorchBackend(tiny_model("llama", torch.float32, max_position_embeddings=512))
    parent = pair(control, rows=2)[backend]
    ids, steps = tokens(2, 221, seed=4), 220
    dense = parent.fork(1).score(ids, keep_of(ACTIONS["dense"], 2, steps), keep_logits=True)
    assert dense.divergences is None
    again = parent.fork(1).score(ids, keep_of(ACTIONS["dense"], 2, steps), reference=dense.logits)
    assert again.logits is None
    torch.testing.assert_close(again.divergences, torch.zeros(2, steps), atol=1e-6, rtol=0)
    known = ids[:, 1:, None]
    said = torch.log_softmax(dense.logits, -1).gather(-1, known)[..., 0]
    torch.testing.assert_close(said, dense.log_probabilities, atol=1e-5, rtol=0)
    keep = keep_of(ACTIONS["joint"], 2, steps).repeat_interleave(2, 0).clone()
    keep[1::2] = keep_of(ACTIONS["dense"], 1, 1)[0, 0]  # the second fork of each runs dense
    forks = ids.repeat_interleave(2, 0)
    found = parent.fork(2).score(forks, keep, reference=dense.logits, keep_logits=True)
    expected = kl(found.logits, dense.logits.repeat_interleave(2, 0)).float()
    torch.testing.assert_close(found.divergences, expected, atol=1e-5, rtol=0)
    assert found.divergences[1::2].max() < 1e-6
    assert found.divergences[::2].mean() > 1e-4
    control.detach()
