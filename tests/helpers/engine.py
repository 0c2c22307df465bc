"""Pairs of a torch session and a session of the compiled engine, over the same prompts."""

from helpers.models import tokens
from helpers.weights import MIXED, QuantisedModel
from solm.backends.cpu.backend import CpuBackend
from solm.backends.cpu.files.sources import LoadedModel
from solm.backends.cpu.session import CpuSession
from solm.core.sparsity import SparsityConfig

SPARSITY = SparsityConfig(window=16)
ACTIONS = {
    "dense": (1.0, 1.0, 16), "attention": (0.3, 1.0, 16), "mlp": (1.0, 0.5, 16), "bits": (1.0, 1.0, 5),
    "joint": (0.25, 0.4, 6),
}  # fmt: skip


KV_CACHES = {"": "auto", "kv": "int8", "kv4": "int8-int4"}
"""Dtypes of KV caches by what names of cases in tests end in."""


def engine_of(model, sparsity=SPARSITY, precision="float32", threads=None, kv_cache_dtype="auto", **options):
    """The engine over a loaded model. precision ``packed``: the model's matrices become random blocks of GGUF types."""
    source = QuantisedModel(model, *MIXED) if precision == "packed" else LoadedModel(model)
    precision = "auto" if precision == "packed" else precision
    return CpuBackend(source, sparsity, precision, threads, kv_cache_dtype, **options)


def pair(control, sparsity=SPARSITY, context=100, rows=2, **options):
    """A torch and a cpu session over the same prompts."""
    engine = engine_of(control.model, sparsity, **options)
    ids = tokens(rows, context)
    sessions = control.session(sparsity), CpuSession(engine, sparsity)
    for session in sessions:
        session.prefill(ids)
    forks = [session.fork(1) for session in sessions]
    assert isinstance(forks[1], CpuSession)
    return forks
