"""The Triton kernels: compiled for GPUs that are not here, and left out of steps on the CPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import solm
from helpers.models import tiny_model
from solm.backends.torch.backend import TorchBackend
from solm.core.sparsity import SparsityConfig
from solm.paper.config import SPARSITY as PAPER

TESTS = Path(__file__).parents[3]
PATH = os.pathsep.join(sys.path)


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True, text=True, timeout=600, cwd=TESTS.parent, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize(
    ("capability", "dtype"), [pytest.param("80", "float32", marks=pytest.mark.slow), ("90", "bfloat16")]
)
def test_kernels_compile_for_gpus_and_fit_their_shared_memory(capability, dtype, tmp_path):
    # A process of its own: Triton interprets kernels in this one.
    done = run("-m", "helpers.compile_kernels", capability, dtype, TRITON_CACHE_DIR=str(tmp_path), PYTHONPATH=PATH)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["_score_pages", "_choose_pages", "_read_pages", "_multiply"]


def test_kernels_stay_out_of_steps_on_the_cpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for name in ("page_attention", "channel_product"):
        monkeypatch.setitem(sys.modules, f"solm.backends.torch.triton.{name}", None)  # importing it would raise
    model = tiny_model("llama", torch.float32)
    with solm.attach(model, sparsity=SparsityConfig(page_size=8, window=16)) as lm:
        assert not any("forward" in vars(module) for module in model.modules())
        session = lm.session()
        session.prefill(torch.arange(3, 103)[None])
        session.step(torch.tensor([5]), torch.tensor([[0.3, 0.5, 6]]))
        assert session.ledger.steps.tolist() == [[1, 1, 1]]


class TwoDevices(TorchDispatchMode):
    """Operations that mix tensors of the CPU with those of `meta`, which stands for a GPU here: name and shapes."""

    def __init__(self):
        super().__init__()
        self.mixed = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        held = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.dim()]
        moves = any(part in str(function) for part in ("_to_copy", "copy_", "aten.index.Tensor"))
        if not moves and len({tensor.device.type for tensor in held}) > 1:
            self.mixed.append((str(function), [list(tensor.shape) for tensor in held]))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("sparsity", [SparsityConfig(), PAPER], ids=["default", "paper"])
def test_sessions_mix_no_devices(sparsity):
    control = TorchBackend(tiny_model("llama", torch.bfloat16).to("meta"))
    ids, keep = torch.full((2, 100), 5), torch.tensor([[0.3, 0.5, 6.0]], dtype=torch.float64)
    with TwoDevices() as seen:
        session = control.session(sparsity)
        session.prefill(ids, torch.tensor([100, 80]))
        session.step(ids[:, 0], keep.expand(2, 3))
        forked = session.fork(2)
        forked.step(ids[:, 0].repeat(2), keep.expand(4, 3))
        alone, other = control.session(sparsity), control.session(sparsity)
        alone.prefill(ids[:1])
        other.prefill(ids[:1, :80])
        alone.join(other)
        alone.step(ids[:, 0], keep.expand(2, 3))
        alone.leave(0)
        alone.score(ids[:1, :9], keep.expand(1, 8, 3))
    assert seen.mixed == []
