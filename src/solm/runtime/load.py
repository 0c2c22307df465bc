"""The two ways in: `load` a model by name, or `attach` to one that is loaded already."""

import logging
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from solm.backends.cpu.backend import CpuBackend, check_precision
from solm.backends.session import Backend
from solm.backends.torch.backend import TorchBackend
from solm.backends.torch.load import load_base
from solm.core.errors import SolmError
from solm.core.sparsity import SparsityConfig
from solm.core.timings import StepTimings, read_timings
from solm.policies.artifact import TrainedPolicy
from solm.runtime.language_model import LanguageModel, sparsity_of

BACKENDS = ("torch", "cpu", "auto")


def load(
    model: str,
    policy: str | Path | TrainedPolicy | None = None,
    *,
    sparsity: SparsityConfig | None = None,
    dtype: str = "auto",
    device: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    backend: str = "torch",
    precision: str | None = None,
    kv_cache_dtype: str = "auto",
    threads: int | None = None,
    timings: str | Path | None = None,
    shard: bool = False,
) -> LanguageModel:
    """Load a base model (hub id, folder, ``.gguf`` file or ``builtin:smollm2-135m``), with a policy if given.

    Args:
        sparsity: how actions are carried out; by default the policy's own, else `SparsityConfig()`.
        backend: ``torch`` (any device, exact simulation), ``cpu`` (steps on the compiled engine), or ``auto``: cpu
            where it can run the model, with a warning that says why where it cannot.
        precision: of the weights of the cpu backend; by default bfloat16, or nested where actions say how many of their
            bits are read. kv_cache_dtype: of its keys and values, ``auto`` or ``int8``. threads: that it steps with.
        timings: a file of ``solm bench``, for budgets in milliseconds.
        shard: split the decoder layers across the processes of `torch.distributed`, which then run the model together.

    Raises:
        SolmError: subclasses for an unknown model, unsupported family, damaged or mismatched policy; all that can be
            checked is checked before the model is loaded.
    """
    if isinstance(policy, str | Path):
        policy = TrainedPolicy.from_pretrained(policy)
    check_backend(backend, precision, kv_cache_dtype, shard, sparsity_of(policy, sparsity))
    known = None if timings is None else read_timings(Path(timings))
    base, tokenizer = load_base(model, dtype, device, trust_remote_code, shard, revision)
    return _built(base, tokenizer, policy, sparsity, model, known, backend, precision, kv_cache_dtype, threads)


def attach(
    model: PreTrainedModel,
    policy: str | Path | TrainedPolicy | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    sparsity: SparsityConfig | None = None,
    backend: str = "torch",
    precision: str | None = None,
    kv_cache_dtype: str = "auto",
    threads: int | None = None,
) -> LanguageModel:
    """Put a loaded model under control; `detach`, or leaving the ``with`` block, gives it back bit for bit.

    Arguments as for `load`.
    """
    if isinstance(policy, str | Path):
        policy = TrainedPolicy.from_pretrained(policy)
    check_backend(backend, precision, kv_cache_dtype, False, sparsity_of(policy, sparsity))
    return _built(model, tokenizer, policy, sparsity, "", None, backend, precision, kv_cache_dtype, threads)


def check_backend(
    backend: str, precision: str | None, kv_cache_dtype: str, shard: bool, sparsity: SparsityConfig
) -> None:
    """Raises `SolmError` for options that no model could be loaded with."""
    if backend not in BACKENDS:
        raise SolmError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    if backend == "torch" and (precision is not None or kv_cache_dtype != "auto"):
        what = f"a KV cache in {kv_cache_dtype}" if precision is None else f"precision {precision}"
        raise SolmError(f"{what} needs the cpu backend; the torch backend computes in the model's own dtype")
    if shard and backend != "torch":
        raise SolmError(f"backend {backend} needs the whole model in one process; shard goes with the torch backend")
    check_precision(precision or _default_precision(sparsity), kv_cache_dtype)


def _built(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    policy: TrainedPolicy | None,
    sparsity: SparsityConfig | None,
    name: str,
    timings: StepTimings | None,
    backend: str,
    precision: str | None,
    kv_cache_dtype: str,
    threads: int | None,
) -> LanguageModel:
    reader = TorchBackend(base)
    made: Backend = reader
    try:
        if backend != "torch":
            how = sparsity_of(policy, sparsity)
            try:
                made = CpuBackend(reader, how, precision or _default_precision(how), threads, kv_cache_dtype)
            except SolmError as error:
                if backend == "cpu":
                    raise
                told = "%s; going on with the torch backend, which saves no time"
                logging.getLogger("solm").warning(told, error)
        return LanguageModel(made, tokenizer, policy, sparsity, name, timings)
    except SolmError:
        made.detach()
        raise


def _default_precision(sparsity: SparsityConfig) -> str:
    return "nested" if sparsity.bits_site == "weights" else "bfloat16"
