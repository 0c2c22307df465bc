"""What layers and KV heads lose when one of them keeps less, measured on one group of texts after another."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from solm.backends.logits import LOGITS_AT_ONCE, divergences
from solm.core.files import write_text
from solm.core.sparsity import SparsityConfig
from solm.runtime.language_model import LanguageModel


class Group(NamedTuple):
    """Texts that are measured together: windows [N, longest context + T] of which `context` tokens are read densely.
    weight: of each in the mean over all texts and contexts."""

    windows: torch.Tensor
    context: int
    weight: float


def groups_of(windows: torch.Tensor, contexts: Sequence[int], length: int, vocabulary: int) -> list[Group]:
    """As many of `windows` [N, longest context + T] for each context as have together the number of context tokens that
    all of them have at the shortest one, in groups whose logits, dense ones and others, fit into memory."""
    together, found = max(1, LOGITS_AT_ONCE // (2 * length * vocabulary)), []
    for context in contexts:
        some = windows[: max(1, len(windows) * min(contexts) // context)]
        weight = 1 / (len(some) * len(contexts))
        found += [Group(part, context, weight) for part in some.split(together)]
    return found


class Texts:
    """The texts of a group, read densely up to its context, and the dense model's predictions after each of the next
    `length` tokens."""

    def __init__(self, lm: LanguageModel, group: Group, length: int):
        self.group, self.tokens = group, group.windows[:, group.context : group.context + length]
        self.parent = lm.session(group.context)
        self.parent.prefill(group.windows[:, : group.context])
        self.dense = self.parent.fork(1, length).extend(self.tokens).logits

    def divergence(self, sparsity: SparsityConfig, axis: str, keep: float) -> np.ndarray:
        """[N] mean KL per text from the dense predictions, nats per token, where all steps keep `keep` of one axis."""
        rows = self.parent.fork(1, self.tokens.shape[1], sparsity)
        pages = axis == "attention"
        action = torch.tensor([keep if pages else 1.0, 1.0 if pages else keep, 16.0], dtype=torch.float64)
        logits = rows.extend(self.tokens, action.expand(*self.tokens.shape, 3)).logits
        found = divergences(logits.flatten(0, 1)[:, None], self.dense.flatten(0, 1))
        return found.view(self.tokens.shape).mean(1).double().cpu().numpy()


class Losses:
    """What units lose, by their names, in a file from which an interrupted search with the same `key` goes on. path:
    None keeps nothing. groups: how many are finished; sums: over these; found: of the group under way."""

    def __init__(self, path: Path | None, key: str):
        self.path, self.key = path, key
        self.groups, self.sums, self.found = 0, dict[str, float](), dict[str, float]()
        if path is None:
            return
        # A damaged file, or one of another run, counts for nothing.
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(path.read_text())
            if known["key"] == key:
                self.groups, self.sums, self.found = int(known["groups"]), dict(known["sums"]), dict(known["found"])

    def measure(self, probe: tuple[str, float, int], texts: Texts, sparsity: SparsityConfig) -> None:
        """Keep the weighted loss of one unit's share under `sparsity`, where it is not known."""
        name = name_of(*probe)
        if name not in self.found:
            self.found[name] = texts.group.weight * float(texts.divergence(sparsity, probe[0], 0.5).sum())
            self._write()

    def finish_group(self) -> None:
        self.sums = {name: self.sums.get(name, 0.0) + loss for name, loss in self.found.items()}
        self.groups, self.found = self.groups + 1, {}
        self._write()

    def _write(self) -> None:
        if self.path is None:
            return
        known = {"key": self.key, "groups": self.groups, "sums": self.sums, "found": self.found}
        write_text(self.path, json.dumps(known))


def name_of(axis: str, share: float, unit: int) -> str:
    return f"{axis} {share} {unit}"
