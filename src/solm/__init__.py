"""solm: a quality/compute dial for frozen language models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from solm.actions import Action, ActionSpace
from solm.budget import Budget
from solm.errors import SolmError
from solm.semantics import Semantics

if TYPE_CHECKING:
    from solm.decoding.api import attach, load
    from solm.decoding.language_model import LanguageModel
    from solm.policies.artifact import TrainedPolicy

__all__ = [
    "Action",
    "ActionSpace",
    "Budget",
    "LanguageModel",
    "Semantics",
    "SolmError",
    "TrainedPolicy",
    "attach",
    "load",
]

# Torch and transformers take seconds to import; nobody who asks for --help should wait for them.
_LAZY = {
    "attach": "solm.decoding.api",
    "load": "solm.decoding.api",
    "LanguageModel": "solm.decoding.language_model",
    "TrainedPolicy": "solm.policies.artifact",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'solm' has no attribute {name!r}")
