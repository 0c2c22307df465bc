"""The ways in: `load` a model by name, `attach` to one that is loaded already, or decode inside its own `generate`."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from solm.backends.cpu.backend import CpuBackend, check_precision
from solm.backends.cpu.weights import INTEGERS
from solm.backends.session import Backend
from solm.backends.torch.backend import TorchBackend
from solm.backends.torch.load import BUILTIN, load_base, resolve_dtype
from solm.core.budget import BudgetLike
from solm.core.errors import SolmError
from solm.core.sparsity import SparsityConfig
from solm.core.timings import StepTimings, read_timings
from solm.policies.artifact import TrainedPolicy
from solm.runtime.controlled import sparsity_of
from solm.runtime.language_model import LanguageModel

BACKENDS = ("torch", "cpu", "auto")


def load(
    model: str | Path,
    policy: str | Path | TrainedPolicy | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    sparsity: SparsityConfig | None = None,
    dtype: str | torch.dtype = "auto",
    torch_dtype: str | torch.dtype | None = None,
    device: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    backend: str = "auto",
    precision: str | None = None,
    kv_cache_dtype: str | None = None,
    threads: int | None = None,
    timings: str | Path | None = None,
    shard: bool = False,
) -> LanguageModel:
    """Load a base model (hub id, folder, ``.gguf`` file or ``builtin:smollm2-135m``), with a policy if given.

    Args:
        tokenizer: in place of the one that comes with the model.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``, or the dtype of torch. torch_dtype: its older name.
        device: such as ``cuda:1``; by default the accelerator, else the CPU. device_map: instead, how the layers are
            spread over devices, as for transformers: ``auto``, a device, or devices by module name.
        revision: branch, tag or commit of a hub id.
        sparsity: how actions are carried out; by default the policy's own, else preset ``cpu`` on the cpu backend and
            ``default`` on torch.
        backend: ``cpu`` (steps on the compiled engine), ``torch`` (any device, exact simulation, saves no time), or
            ``auto``: cpu where it can run the model, else torch. The logger ``solm`` says which one and why.
        precision: of the weights of the cpu backend; by default int4 (exact where weights lie on a grid of 4 bits,
            int8 elsewhere), or nested where actions say how many of their bits are read.
        kv_cache_dtype: of its keys and values, ``auto`` (that of the weights, at least 16 bits) or ``int8``; by default
            auto, and int8 for the built-in model, which loses nothing by it. threads: that it steps with.
        timings: a file of ``solm bench``, for budgets in milliseconds.
        shard: split the decoder layers across the processes of `torch.distributed`, which then run the model together.

    Raises:
        SolmError: subclasses for an unknown model, unsupported family, damaged or mismatched policy; all that can be
            checked is checked before the model is loaded.
    """
    model = str(model)
    if isinstance(policy, str | Path):
        policy = TrainedPolicy.from_pretrained(policy)
    check_backend(backend, precision, kv_cache_dtype, shard, engine_sparsity(policy, sparsity))
    if torch_dtype is not None:
        if dtype != "auto":
            raise SolmError("dtype and torch_dtype say the same thing twice; give one of them")
        dtype = torch_dtype
    resolve_dtype(dtype)
    known = None if timings is None else read_timings(Path(timings))
    base, tokenizer = load_base(model, dtype, device, trust_remote_code, shard, revision, device_map, tokenizer)
    return _built(base, tokenizer, policy, sparsity, model, known, backend, precision, kv_cache_dtype, threads, shard)


def attach(
    model: PreTrainedModel,
    policy: str | Path | TrainedPolicy | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    sparsity: SparsityConfig | None = None,
    backend: str = "torch",
    precision: str | None = None,
    kv_cache_dtype: str | None = None,
    threads: int | None = None,
) -> LanguageModel:
    """Put a loaded model under control; `detach`, or leaving the ``with`` block, gives it back bit for bit.

    Arguments as for `load`, but that `backend` is torch unless it is given.
    """
    if isinstance(policy, str | Path):
        policy = TrainedPolicy.from_pretrained(policy)
    check_backend(backend, precision, kv_cache_dtype, False, engine_sparsity(policy, sparsity))
    return _built(model, tokenizer, policy, sparsity, "", None, backend, precision, kv_cache_dtype, threads)


def custom_generate(
    policy: str | Path | TrainedPolicy | None = None,
    budget: BudgetLike = None,
    *,
    sparsity: SparsityConfig | None = None,
    streamer: Any = None,
) -> Callable[..., torch.Tensor]:
    """What makes ``model.generate`` of a plain transformers model decode under a budget.

    Pass it as ``model.generate(**inputs, custom_generate=solm.custom_generate(policy, budget=0.7))``. Sampling options,
    logits processors, stopping criteria, lengths and the form of the result are transformers' own. The model is under
    control, on the torch backend, only while it generates. To keep it under control, or for the speed of the cpu
    backend, `attach` it and pass `LanguageModel.custom_generate`.

    Args:
        policy: folder, hub id or ``builtin:...`` of a trained policy, or the policy itself; without one a budget is
            kept by the same schedule for every text.
        budget: in any form of `LanguageModel.budget`; None: everything.
        streamer: as for `model.generate`, for one prompt; transformers hands none to a loop of another.

    Raises:
        SolmError: when it is called, for a policy that does not fit the model, a budget out of reach, beam search.
    """

    def loop(model: Any, input_ids: torch.Tensor, **given: Any) -> torch.Tensor:
        with attach(model, policy, sparsity=sparsity) as lm:
            return lm.custom_generate(budget, streamer=streamer)(model, input_ids, **given)

    return loop


def check_backend(
    backend: str, precision: str | None, kv_cache_dtype: str | None, shard: bool, sparsity: SparsityConfig
) -> None:
    """Raises `SolmError` for options that no model could be loaded with."""
    if backend not in BACKENDS:
        raise SolmError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    if backend == "torch" and (precision is not None or kv_cache_dtype is not None):
        what = f"a KV cache in {kv_cache_dtype}" if precision is None else f"precision {precision}"
        raise SolmError(f"{what} needs the cpu backend; the torch backend computes in the model's own dtype")
    if shard and backend == "cpu":
        raise SolmError(f"backend {backend} needs the whole model in one process; shard goes with the torch backend")
    check_precision(precision or default_precision(sparsity), kv_cache_dtype or "auto")


def _built(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    policy: TrainedPolicy | None,
    sparsity: SparsityConfig | None,
    name: str,
    timings: StepTimings | None,
    backend: str,
    precision: str | None,
    kv_cache_dtype: str | None,
    threads: int | None,
    shard: bool = False,
) -> LanguageModel:
    reader = TorchBackend(base)
    made: Backend = reader
    reason = None
    try:
        how = engine_sparsity(policy, sparsity)
        if shard and backend == "auto":
            reason = "the cpu backend needs the whole model in one process"
        elif backend != "torch":
            numbers = precision or default_precision(how)
            cache = kv_cache_dtype or default_kv_cache(name, numbers)
            try:
                made, sparsity = CpuBackend(reader, how, numbers, threads, cache), how
            except SolmError as error:
                if backend == "cpu":
                    raise
                reason = str(error)
        # On another device torch is what one expects; on the CPU it saves no time.
        level = logging.WARNING if reason is not None and made.device.type == "cpu" and not shard else logging.INFO
        told = "" if reason is None else f"; not the cpu backend: {reason}"
        logging.getLogger("solm").log(level, "%s%s", _in_words(made, threads), told)
        return LanguageModel(made, tokenizer, policy, sparsity, name, timings)
    except SolmError:
        made.detach()
        raise


def _in_words(backend: Backend, threads: int | None) -> str:
    """Backend, precision, KV cache and threads in use."""
    parts = [backend.name.replace("int4", "int4 (int8 where that is not exact)")]
    if isinstance(backend, CpuBackend) and not backend.engine.sizes.kv_int8:
        parts.append(f"{'float32' if backend.engine.precision == 'float32' else 'bfloat16'} KV cache")
    used = torch.get_num_threads() if threads is None else threads
    return ", ".join([*parts, "1 thread" if used == 1 else f"{used} threads"])


def engine_sparsity(policy: TrainedPolicy | None, sparsity: SparsityConfig | None = None) -> SparsityConfig:
    """How the cpu backend carries actions out: as asked, else as the policy was trained, else preset ``cpu``."""
    return sparsity_of(policy, sparsity or (SparsityConfig.preset("cpu") if policy is None else None))


def default_precision(sparsity: SparsityConfig) -> str:
    """The weights of the cpu backend where nothing is asked for.

    int4 is exact where weights lie on such a grid, as in many GGUF files, and int8 elsewhere.
    """
    return "nested" if sparsity.bits_site == "weights" else "int4"


def default_kv_cache(model: str, precision: str) -> str:
    """What keys and values the cpu backend has where nothing is asked for.

    int8 where it was measured to lose nothing (docs/results/kv-cache.json), which is so far one model.
    """
    return "int8" if model == BUILTIN and precision in INTEGERS else "auto"
