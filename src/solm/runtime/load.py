"""The ways in: `load` a model by name, `attach` to one that is loaded already, or decode inside its own `generate`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solm.backends.cpu.files.repack import Progress
from solm.core.budget import BudgetLike
from solm.core.errors import SolmError
from solm.core.sparsity import SparsityConfig
from solm.policies.artifact import TrainedPolicy
from solm.runtime.language_model import LanguageModel, ending
from solm.runtime.prepare import Prepared

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


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
            be checked before weights are read is checked then; `argument` of the error names what is wrong.
    """
    if torch_dtype is not None:
        if dtype != "auto":
            raise SolmError("dtype and torch_dtype say the same thing twice; give one of them")
        dtype = torch_dtype
    prepared = Prepared(
        str(model), policy, tokenizer=tokenizer, sparsity=sparsity, dtype=dtype, device=device, device_map=device_map,
        revision=revision, trust_remote_code=trust_remote_code, backend=backend, precision=precision,
        kv_cache_dtype=kv_cache_dtype, threads=threads, timings=timings, shard=shard,
    )  # fmt: skip
    return prepared.load(progress)


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
    return Prepared(
        "", policy, tokenizer=tokenizer, sparsity=sparsity, device="cpu", backend=backend, precision=precision,
        kv_cache_dtype=kv_cache_dtype, threads=threads, loaded=model,
    ).load()  # fmt: skip


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
