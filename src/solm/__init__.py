"""solm: a quality/compute dial for frozen language models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from solm.core.actions import Action, ActionSpace
    from solm.core.budget import Budget
    from solm.core.errors import SolmError
    from solm.core.sparsity import SparsityConfig
    from solm.policies.artifact import TrainedPolicy
    from solm.runtime.grammars import Grammar
    from solm.runtime.language_model import LanguageModel
    from solm.runtime.load import attach, custom_generate, load

    __version__: str

# Torch and transformers take seconds to import; nobody who asks for --help should wait for them.
_HOMES = {
    "Action": "solm.core.actions",
    "ActionSpace": "solm.core.actions",
    "Budget": "solm.core.budget",
    "Grammar": "solm.runtime.grammars",
    "LanguageModel": "solm.runtime.language_model",
    "SparsityConfig": "solm.core.sparsity",
    "SolmError": "solm.core.errors",
    "TrainedPolicy": "solm.policies.artifact",
    "attach": "solm.runtime.load",
    "custom_generate": "solm.runtime.load",
    "load": "solm.runtime.load",
}

__all__ = [
    "Action",
    "ActionSpace",
    "Budget",
    "Grammar",
    "LanguageModel",
    "SolmError",
    "SparsityConfig",
    "TrainedPolicy",
    "attach",
    "custom_generate",
    "load",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("solm")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'solm' has no attribute {name!r}")
