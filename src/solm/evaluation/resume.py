"""What a partial result is a part of: one of anything else is not continued."""

import hashlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from solm.core.actions import ActionSpace
from solm.evaluation.arms import Arm
from solm.evaluation.result import SCHEMA_VERSION
from solm.runtime.language_model import LanguageModel

_FORM = "2"
"""Of the parts: another number for every change of what they hold."""


def resume_key(lm: LanguageModel, settings: BaseModel, space: ActionSpace, *fingerprints: str) -> str:
    """The sha256 of all that a result of `lm` depends on: model, policy, timings, settings, and the `fingerprints` of
    texts and of further arms."""
    texts = [str(SCHEMA_VERSION), _FORM, lm.backend.name, lm.backend.dtype]
    known: list[BaseModel | None] = [settings, space, lm.space, lm.identity, lm.sparsity, lm.timings]
    texts += ["" if one is None else one.model_dump_json() for one in known]
    return hashlib.sha256("\n".join([*texts, network_fingerprint(lm.trained), *fingerprints]).encode()).hexdigest()


def arm_fingerprints(arms: Mapping[str, Arm]) -> list[str]:
    """A line for each of `arms`: its name, what decides, in which space, and how its actions are carried out."""
    lines = []
    for name, arm in sorted(arms.items()):
        kind, space = type(arm.policy).__name__, getattr(arm.policy, "space", None)
        rules = ["" if one is None else one.model_dump_json() for one in (space, arm.sparsity)]
        lines.append(" ".join([name, kind, *rules, network_fingerprint(arm.policy)]))
    return lines


def network_fingerprint(policy: Any) -> str:
    """The sha256 of a policy's network, its sizes and its weights; nothing for what has none."""
    network = getattr(policy, "network", None)
    if network is None:
        return ""
    digest = hashlib.sha256(network.config.model_dump_json().encode())
    for tensor in network.state_dict().values():
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()
