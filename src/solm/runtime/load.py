"""The ways in: `load` a model by name, `attach` to one that is loaded already, or decode inside its own `generate`."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solm.backends.cpu.backend import CpuBackend
from solm.backends.cpu.engine import check_precision
from solm.backends.cpu.files.layout import FLOATS, readable_in_part
from solm.backends.cpu.files.repack import Progress
from solm.backends.cpu.files.sources import WeightSource, source_of
from solm.backends.machine import accelerator_available, check_threads, default_threads, keep_freed_memory
from solm.backends.names import BUILTIN, dtype_name
from solm.backends.session import Backend
from solm.backends.tokenizer import model_tokenizer
from solm.core.budget import BudgetLike
from solm.core.cost import read_timings
from solm.core.errors import DamagedFileError, SolmError, UnsupportedModelError, counted
from solm.core.sparsity import SparsityConfig
from solm.policies.artifact import TrainedPolicy
from solm.runtime.controlled import sparsity_of
from solm.runtime.facts import facts_of, generation_options, model_facts, policy_called
from solm.runtime.language_model import LanguageModel, ending

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

BACKENDS = ("torch", "cpu", "auto")


def load(
    model: str | Path,
    policy: str | Path | TrainedPolicy | None = None,
    *,
    tokenizer: Any = None,
    sparsity: SparsityConfig | str | None = None,
    dtype: "str | torch.dtype" = "auto",
    torch_dtype: "str | torch.dtype | None" = None,
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
    progress: Progress | None = None,
) -> LanguageModel:
    """Load a base model, with a policy if given.

    Args:
        model: hub id, folder, ``.gguf`` file or ``builtin:smollm2-135m``.
        policy: folder, hub id or ``builtin:...`` of a trained policy, the policy itself, or ``auto``: the one that
            ships for the model.
        tokenizer: of transformers, in place of the one that comes with the model.
        sparsity: how actions are carried out, a config or the name of a preset; by default the policy's own, else
            preset ``cpu`` on the cpu backend and ``default`` on torch.
        dtype: of the torch backend: ``auto``, ``float32``, ``bfloat16`` or ``float16``, or a dtype of torch.
        torch_dtype: an older name of `dtype`.
        device: such as ``cuda:1``; by default the accelerator, else the CPU.
        device_map: instead of `device`, how layers are spread over devices, as for transformers: ``auto``, a device, or
            devices by module name.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run code that comes with a model.
        backend: ``cpu`` (steps on the compiled engine), ``torch`` (any device, exact simulation, saves no time), or
            ``auto``: cpu where it can run the model, else torch. The logger ``solm`` says which one and why.
        precision: of the weights of the cpu backend; by default ``auto``: the types of a GGUF file as they are, int8
            for floats. Actions that choose weight bits have ``nested``, unless the MLP weights of a GGUF file all have
            6 or 8 bits.
        kv_cache_dtype: of the keys and values of the cpu backend: ``auto`` (that of the weights, at least 16 bits) or
            ``int8``; by default auto, and int8 for the built-in model, where no loss could be measured.
        threads: threads of the cpu backend's steps; by default one per usable core.
        timings: a file of ``solm bench``, for budgets in milliseconds.
        shard: split the decoder layers across the processes of `torch.distributed`, which then run the model together.
        progress: called with the parts done and all parts, while the cpu backend repacks weights that are not cached.

    Raises:
        SolmError: subclasses for an unknown model, an unsupported family, a damaged or mismatched policy. Whatever can
            be checked before the model is loaded is checked then.
    """
    model = str(model)
    if isinstance(policy, str | Path):
        policy = policy_called(policy, lambda: model_facts(model, revision, trust_remote_code, backend != "torch"))
    check_backend(backend, precision, kv_cache_dtype, shard)
    if threads is not None:
        check_threads(threads)  # a mistake, and no reason for `auto` to go on without the engine
    if torch_dtype is not None:
        if dtype != "auto":
            raise SolmError("dtype and torch_dtype say the same thing twice; give one of them")
        dtype = torch_dtype
    dtype_name(dtype)
    known = None if timings is None else read_timings(Path(timings))
    if known is not None:
        known.check_model(model, backend)
    how, reason = engine_sparsity(policy, sparsity), None
    if backend != "torch":
        reason = _elsewhere(device, device_map, shard)
        if reason is not None and backend == "cpu":
            raise SolmError(f"the cpu backend cannot run this model: {reason}")
        if reason is None:
            tokenizer = tokenizer or model_tokenizer(model, trust_remote_code, revision)
            try:
                made = _on_cpu(source_of(model, revision), how, model, precision, kv_cache_dtype, threads, progress)
            except SolmError as error:
                if backend == "cpu" or isinstance(error, DamagedFileError):
                    raise
                reason = str(error)
            else:
                _announce(made)
                generation = generation_options(model, revision, made.engine.spec)
                return noted(LanguageModel(made, tokenizer, policy, how, model, known, generation=generation))
    if precision is not None or kv_cache_dtype is not None:
        raise SolmError(f"precision and kv_cache_dtype are of the cpu backend, which cannot be used here: {reason}")
    from solm.backends.torch.backend import TorchBackend
    from solm.backends.torch.load import load_base

    base, tokenizer = load_base(model, dtype, device, trust_remote_code, shard, revision, device_map, tokenizer)
    torch_backend = TorchBackend(base)
    _announce(torch_backend, reason, expected=shard)
    try:
        return noted(LanguageModel(torch_backend, tokenizer, policy, sparsity, model, known))
    except SolmError:
        torch_backend.detach()
        raise


def attach(
    model: "PreTrainedModel",
    policy: str | Path | TrainedPolicy | None = None,
    tokenizer: Any = None,
    *,
    sparsity: SparsityConfig | str | None = None,
    backend: str = "torch",
    precision: str | None = None,
    kv_cache_dtype: str | None = None,
    threads: int | None = None,
) -> LanguageModel:
    """Put a loaded transformers model under control. `detach`, or the end of a ``with`` block, restores it bit for bit.

    Arguments and errors as for `load`; the default of `backend` is ``torch``.
    """
    if isinstance(policy, str | Path):
        policy = policy_called(policy, lambda: facts_of(model.config))
    check_backend(backend, precision, kv_cache_dtype, False)
    how = engine_sparsity(policy, sparsity)
    reason = None
    if backend != "torch":
        from solm.backends.cpu.files.sources import LoadedModel

        try:
            made = _on_cpu(LoadedModel(model), how, "", precision, kv_cache_dtype, threads)
            _announce(made)
            return noted(LanguageModel(made, tokenizer, policy, how, model=model))
        except UnsupportedModelError as error:
            if backend == "cpu":
                raise
            reason = str(error)
    from solm.backends.torch.backend import TorchBackend

    torch_backend = TorchBackend(model)
    try:
        _announce(torch_backend, reason)
        return noted(LanguageModel(torch_backend, tokenizer, policy, sparsity))
    except SolmError:
        torch_backend.detach()
        raise


def custom_generate(
    policy: str | Path | TrainedPolicy | None = None,
    budget: BudgetLike = None,
    *,
    sparsity: SparsityConfig | str | None = None,
    streamer: Any = None,
) -> "Callable[..., torch.Tensor]":
    """A decoding loop for ``model.generate`` of a plain transformers model that keeps a budget.

    Pass it as ``model.generate(**inputs, custom_generate=solm.custom_generate(policy, budget=0.7))``. Sampling options,
    logits processors, stopping criteria, lengths and the form of the result are transformers' own. The model is under
    control, on the torch backend, only while it generates. To keep it under control, or for the speed of the cpu
    backend, `attach` it and pass `LanguageModel.custom_generate`.

    Args:
        policy: folder, hub id or ``builtin:...`` of a trained policy, or the policy itself; without one all layers are
            treated alike.
        budget: in any form of `LanguageModel.budget`; None: dense.
        streamer: as for `model.generate`, for one prompt; transformers does not pass its own to a custom loop.

    Raises:
        SolmError: when the loop is called, for a policy that does not fit the model, a budget that cannot be met, or
            beam search.
    """

    @ending(streamer)
    def loop(model: Any, input_ids: "torch.Tensor", **given: Any) -> "torch.Tensor":
        from solm.runtime import custom

        with attach(model, policy, sparsity=sparsity) as lm:
            return custom.custom_generate(lm, budget, None, streamer)(model, input_ids, **given)

    return loop


def check_backend(backend: str, precision: str | None, kv_cache_dtype: str | None, shard: bool) -> None:
    """Raises `SolmError` for options that no model could be loaded with."""
    if backend not in BACKENDS:
        raise SolmError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    if backend == "torch" and (precision is not None or kv_cache_dtype is not None):
        what = f"a KV cache in {kv_cache_dtype}" if precision is None else f"precision {precision}"
        raise SolmError(f"{what} needs the cpu backend; the torch backend computes in the model's own dtype")
    if shard and backend == "cpu":
        raise SolmError(f"backend {backend} needs the whole model in one process; shard goes with the torch backend")
    check_precision(precision or "auto", kv_cache_dtype or "auto")


def _elsewhere(device: str | None, device_map: object, shard: bool) -> str | None:
    """Why a model does not run on the CPU of this process; None if it does."""
    if shard:
        return "it needs the whole model in one process"
    if device_map is not None:
        return "it runs on the CPU only"
    if device not in (None, "cpu"):
        from solm.backends.torch.load import check_device

        if check_device(str(device)).type != "cpu":
            return "it runs on the CPU only"
    if device is None and accelerator_available():
        return "there is an accelerator"
    return None


def _on_cpu(
    source: WeightSource,
    sparsity: SparsityConfig,
    name: str,
    precision: str | None,
    kv_cache_dtype: str | None,
    threads: int | None,
    progress: Progress | None = None,
) -> CpuBackend:
    keep_freed_memory()
    numbers = precision or default_precision(sparsity, source)
    return CpuBackend(source, sparsity, numbers, threads, kv_cache_dtype or default_kv_cache(name, numbers), progress)


def _announce(backend: Backend, reason: str | None = None, expected: bool = False) -> None:
    """Say what is in use: backend, precision, KV cache and threads. reason: why it is not the cpu backend."""
    parts = [backend.name]
    if isinstance(backend, CpuBackend) and not backend.engine.sizes.kv_int8:
        parts.append(f"{'float32' if backend.engine.precision == 'float32' else 'bfloat16'} KV cache")
    used = backend.engine.threads if isinstance(backend, CpuBackend) else default_threads()
    parts.append(counted(used, "thread"))
    # On another device torch is what one expects; on the CPU it saves no time.
    slow = reason is not None and backend.device.type == "cpu" and not expected
    told = "" if reason is None else f"; not the cpu backend: {reason}"
    logging.getLogger("solm").log(logging.WARNING if slow else logging.INFO, "%s%s", ", ".join(parts), told)


def noted(lm: LanguageModel) -> LanguageModel:
    """`lm`, after a warning where the step times by which its budgets in time are told are not of this machine."""
    if lm.timings_note is not None:
        logging.getLogger("solm").warning(lm.timings_note)
    return lm


def engine_sparsity(policy: TrainedPolicy | None, sparsity: SparsityConfig | str | None = None) -> SparsityConfig:
    """How the cpu backend carries actions out: as asked, else as the policy was trained, else preset ``cpu``."""
    return sparsity_of(policy, "cpu" if sparsity is None and policy is None else sparsity)


def default_precision(sparsity: SparsityConfig, source: WeightSource) -> str:
    """The precision of the cpu backend where none is asked for.

    ``auto`` keeps what the files have. Actions that choose weight bits need weights that can be read in part: those are
    ``nested``, unless the file's own can.
    """
    return "nested" if sparsity.bits_site == "weights" and not readable_in_part(source) else "auto"


def default_kv_cache(model: str, precision: str) -> str:
    """What keys and values the cpu backend has where nothing is asked for.

    int8 where it was measured to lose nothing (docs/results/kv-cache.json), which is so far one model.
    """
    return "int8" if model == BUILTIN and precision not in FLOATS else "auto"
