"""The engine on the real model and real text."""

import shutil

import pytest
import torch

from helpers.models import keep_of
from solm.backends.cpu.engine import Engine
from solm.backends.cpu.files.sources import GgufFile, LoadedModel
from solm.backends.cpu.session import CpuSession
from solm.backends.names import BUILTIN, gguf_of
from solm.backends.torch.backend import TorchBackend
from solm.core.sparsity import SparsityConfig
from solm.evaluation.texts import token_stream

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


def _engine(model, precision, kv_cache_dtype="auto"):
    """auto: the file's own bits."""
    source = GgufFile(gguf_of(BUILTIN)) if precision == "auto" else LoadedModel(model)
    return Engine(source, SparsityConfig(), precision, kv_cache_dtype=kv_cache_dtype)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "auto"])
def test_an_approximate_tail_chooses_the_same_token_on_real_text(real_model, precision):
    """5,120 tokens: the largest logit is the exact head's, and so is all that is likely, at most 10 tokens."""
    model, tokenizer = real_model
    control = TorchBackend(model)
    ids = token_stream("pydoc:heldout", tokenizer).spaced(40, 193, torch.Generator().manual_seed(0))
    session = CpuSession(_engine(model, precision), SparsityConfig())
    session.prefill(ids[:, :64])
    found = []
    for exact_largest in (0, 16):
        fork = session.fork(1)
        steps = [fork.step(token, exact_largest=exact_largest).logits for token in ids[:, 64:192].T]
        found.append(torch.cat(steps, 1))
    exact, short = found
    control.detach()
    assert torch.equal(exact.argmax(-1), short.argmax(-1))
    likely = exact.softmax(-1) > 0.1
    # Many rows of weights without grids are multiplied as a matrix only where all logits are exact.
    torch.testing.assert_close(exact[likely], short[likely], rtol=1e-6, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "agreement"),
    [("float32", 1.0), ("bfloat16", 0.98), ("int8", 0.94), ("auto", 0.95), ("auto beside a cache of bytes", 0.95)],
)
def test_real_text_gets_the_torch_backends_predictions(real_model, precision, agreement):
    model, tokenizer = real_model
    control = TorchBackend(model)
    ids = token_stream("pydoc:heldout", tokenizer).spaced(6, 385, torch.Generator().manual_seed(0))
    precision, _, bytes_ = precision.partition(" beside ")
    engine = _engine(model, precision, "int8" if bytes_ else "auto")
    sessions = control.session(SparsityConfig()), CpuSession(engine, SparsityConfig())
    for session in sessions:
        session.prefill(ids[:, :256])
    keep = keep_of((0.4, 1.0, 16), 6, 128)
    expected, found = (session.fork(1).extend(ids[:, 256:384], keep).logits for session in sessions)
    control.detach()
    if precision == "float32":
        # Where two pages tie but for rounding, either may be read, and what follows in that row sees it.
        assert ((expected - found).abs().amax(-1) < 1e-3).float().mean() > 0.98
    assert (expected.argmax(-1) == found.argmax(-1)).float().mean() >= agreement
