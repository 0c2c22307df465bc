"""The engine's KV cache: int8, rows that outgrow their room, and rows that share pages."""

import shutil

import pytest
import torch

from helpers.engine import SPARSITY, engine_of, pair
from helpers.models import keep_of, tiny_model, tokens
from solm.backends.cpu.session import CpuSession
from solm.backends.torch.backend import TorchBackend

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


@pytest.mark.parametrize("context", [1, 16, 777])
@pytest.mark.parametrize("group", [1, 3, 5])
def test_a_cache_of_bytes_stays_close_to_bfloat16(context, group):
    """At page boundaries, in forks, after cuts, where rows outgrow their room and where a thread reads more pages than
    it sums up in whole numbers, for 1, 3 and 5 queries a KV head."""
    heads = {"num_attention_heads": 2 * group, "num_key_value_heads": 2, "head_dim": 32}
    sizes = {"hidden_size": 64 * group, "max_position_embeddings": 1024, **heads}
    control = TorchBackend(tiny_model("llama", torch.float32, **sizes))
    found = []
    for precision, dtype in (("float32", "auto"), ("int8", "auto"), ("int8", "int8")):
        session = CpuSession(engine_of(control.model, SPARSITY, precision, kv_cache_dtype=dtype), SPARSITY)
        session.prefill(tokens(2, context))
        session = session.fork(2)
        hidden = [session.extend(tokens(4, 90, seed=3), keep_of((1.0, 1.0, 16), 4, 90)).hidden]
        session.truncate(torch.tensor([context + cut for cut in (90, 71, 64, 40)]))
        hidden.append(session.extend(tokens(4, 40, seed=4)).hidden)
        found.append(torch.cat(hidden, 1))
    pairs, bytes_ = ((found[0] - other).norm(dim=-1) / found[0].norm(dim=-1) for other in found[1:])
    assert bytes_.mean() < 1.2 * pairs.mean()
    assert bytes_.max() < 2 * pairs.max()
    control.detach()


def test_large_biases_of_a_few_keys_leave_the_others_exact():
    control = TorchBackend(tiny_model("qwen2", torch.float32))
    with torch.no_grad():
        for layer in control.model.model.layers:
            layer.self_attn.k_proj.bias.zero_()[::8] = 100.0
            layer.self_attn.q_proj.weight[::8] = 0  # or these channels alone would decide what is attended to
            layer.self_attn.q_proj.bias.zero_()
    logits = []
    for dtype in ("auto", "int8"):
        session = CpuSession(engine_of(control.model, SPARSITY, "int8", kv_cache_dtype=dtype), SPARSITY)
        session.prefill(tokens(2, 100))
        logits.append(session.extend(tokens(2, 40, seed=3)).logits)
    assert (logits[0] - logits[1]).norm() < 0.1 * logits[0].norm()
    control.detach()


def test_rows_outgrow_what_was_reserved_and_keep_what_they_held():
    control = TorchBackend(tiny_model("llama", torch.float32))
    ours, native = pair(control, context=20)
    following, keep = tokens(2, 200, seed=8), keep_of((0.3, 1.0, 16), 2, 200)
    for start in range(0, 200, 50):
        some = slice(start, start + 50)
        expected, found = (s.extend(following[:, some], keep[:, some]).logits for s in (ours, native))
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    control.detach()
