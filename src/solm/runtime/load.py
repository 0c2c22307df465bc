"""The two ways in: `load` a model by name, or `attach` to one that is loaded already."""

import logging
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from solm.backends.cpu.engine import check_precision
from solm.backends.torch.load import load_base
from solm.core.errors import SolmError
from solm.core.sparsity import SparsityConfig
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
    trust_remote_code: bool = False,
    backend: str = "torch",
    precision: str | None = None,
    kv_cache_dtype: str = "auto",
    shard: bool = False,
    revision: str | None = None,
) -> LanguageModel:
    """Load a base model (hub id, folder, ``.gguf`` file or ``builtin:smollm2-135m``), with a policy if given.

    sparsity: how actions are carried out; by default the policy's own, else `SparsityConfig()`. backend: ``torch``,
    ``cpu`` (steps on the compiled engine, weights held in `precision`, by default bfloat16, or nested where actions
    say how many of their bits are read; keys and values in `kv_cache_dtype`: ``auto`` or ``int8``), or ``auto``: cpu
    where it can run, with a warning that says why where it cannot. revision: branch, tag or commit of a hub id. shard:
    deal the decoder layers out to the processes of `torch.distributed`, which then run the model together.
    Raises `SolmError` subclasses: unknown model, unsupported family, damaged or mismatched policy.
    """
    if backend not in BACKENDS:
        raise SolmError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    if backend == "torch" and (precision is not None or kv_cache_dtype != "auto"):
        what = f"a KV cache in {kv_cache_dtype}" if precision is None else f"precision {precision}"
        raise SolmError(f"{what} needs the cpu backend; the torch backend computes in the model's own dtype")
    if shard and backend != "torch":
        raise SolmError(f"backend {backend} needs the whole model in one process; shard goes with the torch backend")
    if isinstance(policy, str | Path):
        policy = TrainedPolicy.from_pretrained(policy)
    how = sparsity_of(policy, sparsity)
    chosen = precision or ("nested" if how.bits_site == "weights" else "bfloat16")
    check_precision(chosen, kv_cache_dtype)  # even where ``auto`` would go on without: it is the caller's mistake
    base, tokenizer = load_base(model, dtype, device, trust_remote_code, shard, revision)
    lm = LanguageModel(base, tokenizer, policy, sparsity, name=model)
    if backend != "torch":
        try:
            lm.compile(chosen, kv_cache_dtype=kv_cache_dtype)
        except SolmError as error:
            if backend == "cpu":
                lm.detach()
                raise
            logging.getLogger("solm").warning("%s; going on with the torch backend, which saves no time", error)
    return lm


def attach(
    model: PreTrainedModel,
    policy: str | Path | TrainedPolicy | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    sparsity: SparsityConfig | None = None,
) -> LanguageModel:
    """Put a loaded model under control; `detach`, or leaving the ``with`` block, gives it back bit for bit."""
    if isinstance(policy, str | Path):
        policy = TrainedPolicy.from_pretrained(policy)
    return LanguageModel(model, tokenizer, policy, sparsity)
