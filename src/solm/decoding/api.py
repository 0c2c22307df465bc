"""The two ways in: `load` a model by name, or `attach` to one that is loaded already."""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from solm.decoding.language_model import LanguageModel
from solm.models.load import load_base
from solm.policies.artifact import TrainedPolicy
from solm.semantics import Semantics


def load(
    model: str,
    policy: str | Path | TrainedPolicy | None = None,
    *,
    semantics: Semantics | None = None,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load a base model (hub id, folder, ``.gguf`` file or ``builtin:smollm2-135m``), with a policy if given.

    semantics: how actions are carried out; by default the policy's own, else `Semantics()`.
    Raises `SolmError` subclasses: unknown model, unsupported family, damaged or mismatched policy.
    """
    if isinstance(policy, str | Path):
        policy = TrainedPolicy.from_pretrained(policy)
    base, tokenizer = load_base(model, dtype, device, trust_remote_code)
    return LanguageModel(base, tokenizer, policy, semantics, name=model)


def attach(
    model: PreTrainedModel,
    policy: str | Path | TrainedPolicy | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    semantics: Semantics | None = None,
) -> LanguageModel:
    """Put a loaded model under control; `detach`, or leaving the ``with`` block, gives it back bit for bit."""
    if isinstance(policy, str | Path):
        policy = TrainedPolicy.from_pretrained(policy)
    return LanguageModel(model, tokenizer, policy, semantics)
