"""The Triton kernels: under Triton's interpreter on the CPU, and compiled for GPUs that are not here."""

from solm.backends.torch.backend import TorchBackend
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

HERE = Path(__file__).parent
installed = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True, text=True, timeout=600, cwd=HERE.parents[3], env={**os.environ, **environment},
    )  # fmt: skip


@installed
def test_kernels_equal_plain_torch_under_the_interpreter():
    # A process of its own: Triton decides at its import whether it interprets.
    done = run("-m", "pytest", HERE / "interpreted_kernels.py", "-q", "--no-header", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def kernel_sources(dtype):
    """Every kernel with the arguments that a model of heads of 128 launches it with."""
    import triton.language as tl
    from triton.compiler import ASTSource

    from solm.backends.torch.triton import channel_product as product
    from solm.backends.torch.triton import page_attention as pages

    values = {"bfloat16": "*bf16", "float32": "*fp32"}[dtype]
    operand = getattr(tl, dtype)
    tile = pages.tokens_at_once(256, 2 if dtype == "bfloat16" else 4)
    head = {"GROUP": 4, "SIZE": 128, "SIZE_BLOCK": 128, "HAS_PREFIX": True}
    kernels = {
        pages._score_pages: {**head, "GROUP_BLOCK": 4, "BLOCK": 32},
        pages._choose_pages: {"SINKS": 1, "PAGE": 16, "BLOCK": 2048},
        pages._read_pages: {
            **head, "GROUP_BLOCK": 16, "VALUE_SIZE": 128, "VALUE_BLOCK": 128, "PAGE": 16, "BLOCK": tile,
            "SOFTCAP": True, "OPERAND": operand,
        },
        product._multiply: {"ROWS": 16, "CHANNELS": 64, "OUTPUTS": 128, "OPERAND": operand},
    }  # fmt: skip
    integers = {"positions": "*i64", "base": "*i64", "window_start": "*i64", "budget": "*i64", "chosen": "*i32"}
    others = {"counts": "*i32", "scores": "*fp32", "output": "*fp32", "logs": "*fp32", "parts": "*fp32"}
    stored = ("query", "x", "weight", *(f"{where}_{what}" for where in ("prefix", "own") for what in
              ("low", "high", "keys", "values")))  # fmt: skip
    types = {**integers, **others, **dict.fromkeys(stored, values), "softcap": "fp32"}
    aligned = [["tt.divisibility", 16]]
    for kernel, constants in kernels.items():
        names = kernel.arg_names
        assert all(name in constants for name in names if name.isupper())
        signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
        attributes = {(place,): aligned for place, name in enumerate(names) if signature[name].startswith("*")}
        yield ASTSource(kernel, signature, constexprs=constants, attrs=attributes)


@installed
@pytest.mark.parametrize(("capability", "dtype"), [(80, "float32"), (90, "bfloat16")])
def test_kernels_compile_for_gpus_and_fit_their_shared_memory(capability, dtype, tmp_path, monkeypatch):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import compile as compile_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for source in kernel_sources(dtype):
        built = compile_kernel(source, target=GPUTarget("cuda", capability, 32), options={"num_stages": 2})
        assert len(built.asm["cubin"]) > 0
        # What a program of compute capability 8.6 may take; 8.0 and 9.0 have more.
        assert built.metadata.shared <= 99 << 10, source.fn.__name__
        assert ("mma" in built.asm["ptx"]) == (dtype == "bfloat16" and "tl.dot" in source.fn.src)


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
        assert session.ledger.steps.tolist() == [1]


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


@pytest.mark.parametrize("name", ["default", "paper"])
def test_sessions_mix_no_devices(name):
    sparsity = SparsityConfig.preset(name)
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


def test_the_benchmark_says_in_one_line_that_it_needs_a_gpu():
    done = run("benchmarks/gpu.py", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == ["benchmarks/gpu.py needs a CUDA device; torch sees none"]
