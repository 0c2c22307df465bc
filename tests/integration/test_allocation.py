"""Allocations on both backends and in the command line."""

import shutil

import pytest
import torch

import solm
from helpers.engine import engine_of
from helpers.models import keep_of, tiny_model, tokens
from helpers.policies import BENDS, EVEN, by_head, sparsity_of
from solm.backends.cpu.session import CpuSession
from solm.backends.torch.backend import TorchBackend
from solm.core.errors import PolicyMismatchError
from solm.core.sparsity import Allocation, SparsityConfig


@pytest.fixture(scope="module")
def control():
    control = TorchBackend(tiny_model("llama", torch.float32, num_hidden_layers=4))
    yield control
    control.detach()


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("action", [(0.3, 1.0, 16), (1.0, 0.5, 16), (0.25, 0.4, 6), (1.0, 1.0, 16)])
def test_both_backends_carry_out_an_allocation_alike(control, action, heads):
    sparsity = sparsity_of(*BENDS)
    if heads > 1:
        sparsity = sparsity.under(by_head(sparsity.allocation))
    sessions = (
        control.session(sparsity),
        CpuSession(engine_of(control.model, sparsity, "float32"), sparsity),
    )
    found = []
    for session in sessions:
        session.prefill(tokens(2, 150))
        rows = session.fork(1)
        found.append((rows, rows.extend(tokens(2, 40, seed=5), keep_of(action, 2, 40))))
    (ours, expected), (native, given_) = found
    close = (expected.logits - given_.logits).abs().amax(-1) < 1e-3
    assert close.float().mean() > 0.95
    torch.testing.assert_close(expected.realised, given_.realised)
    torch.testing.assert_close(ours.ledger.spent, native.ledger.spent)


def test_an_allocation_for_another_model_is_refused():
    with pytest.raises(PolicyMismatchError, match="4 layers: the model has 2"):
        solm.attach(tiny_model("llama"), sparsity=sparsity_of(*BENDS))
    three = Allocation(attention=(EVEN,) * 6, mlp=(EVEN,) * 2, hidden=(EVEN,) * 2)
    with pytest.raises(PolicyMismatchError, match="3 KV heads: the model has 2"):
        solm.attach(tiny_model("llama"), sparsity=SparsityConfig(window=16, allocation=three))
    model = tiny_model("llama")
    solm.attach(model).detach()  # the refusal left no hooks behind elsewhere, and this model is free
