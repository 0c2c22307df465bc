"""solm: a quality/compute dial for frozen language models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from solm.actions import Action, ActionSpace
    from solm.budget import Budget
    from solm.decoding.api import attach, load
    from solm.decoding.language_model import LanguageModel
    from solm.errors import SolmError
    from solm.policies.artifact import TrainedPolicy
    from solm.semantics import Semantics

# Torch and transformers take seconds to import; nobody who asks for --help should wait for them.
_HOMES = {
    "Action": "solm.actions",
    "ActionSpace": "solm.actions",
    "Budget": "solm.budget",
    "LanguageModel": "solm.decoding.language_model",
    "Semantics": "solm.semantics",
    "SolmError": "solm.errors",
    "TrainedPolicy": "solm.policies.artifact",
    "attach": "solm.decoding.api",
    "load": "solm.decoding.api",
}

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


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'solm' has no attribute {name!r}")
