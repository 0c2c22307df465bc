"""What a model makes of each source of text, and whether that is like the text that a policy was measured on."""

import numpy as np
import torch

from solm.core.curve import BudgetCurve, TextFacts
from solm.data.windows import TokenStream
from solm.evaluation.result import EvaluationResult
from solm.runtime.language_model import LanguageModel

_ALIKE = 0.8
"""Characters per token, as a share of the lowest that a policy was measured on, below which text is another language.

Measured with SmolLM2's tokenizer: the lowest of eight kinds of English prose has 0.83 of the highest, French 0.72 of
the lowest, German 0.61, Russian 0.33."""


def shares_of(texts: int, sources: int) -> list[int]:
    """How many of `texts` come from each of `sources`: as many, within one."""
    return [(texts + sources - 1 - index) // sources for index in range(sources)]


def text_facts(
    lm: LanguageModel, streams: list[TokenStream], windows: torch.Tensor, nats: np.ndarray
) -> list[TextFacts]:
    """The sources of windows [texts, length] that lose nats [texts] per token under the dense model; none for a model
    without a tokenizer."""
    if lm.tokenizer is None:
        return []
    found, first = [], 0
    for stream, count in zip(streams, shares_of(len(windows), len(streams)), strict=True):
        part, first = slice(first, first + count), first + count
        if count:
            said = sum(len(lm.tokenizer.decode(row.tolist())) for row in windows[part])
            found.append(
                TextFacts(
                    name=stream.name, nats=float(nats[part].mean()),
                    characters_per_token=max(said, 1) / windows[part].numel(),
                )
            )  # fmt: skip
    return found


def unlike(result: EvaluationResult, curve: BudgetCurve) -> str | None:
    """What to say where a source is unlike all text that the policy's curve was measured on, such as one in another
    language: how it shows, and what the policy loses on it. None where there is no such source.

    It shows in the characters per token. The dense model's loss does not tell: measured on the same messages in nine
    languages, a token of a language that the tokenizer cuts into pieces is no harder to foresee than one of English.
    """
    if not curve.sources:
        return None
    known = [source.characters_per_token for source in curve.sources]
    low, high = _ALIKE * min(known), max(known) / _ALIKE
    other = [source for source in result.sources if not low <= source.characters_per_token <= high]
    if not other:
        return None
    which = ", ".join(f"{source.name} has {source.characters_per_token:.1f}" for source in other)
    told = (
        f"{which} characters per token, the policy was measured on text of {min(known):.1f} to {max(known):.1f}: "
        "another language, perhaps"
    )
    losses, expected = _losses(result, curve)
    if losses:
        told += f"; on the text of this evaluation it loses {_range(losses)} nats per token"
    if expected:
        told += f", {_range(expected)} by its curve"
    return told


def _losses(result: EvaluationResult, curve: BudgetCurve) -> tuple[list[float], list[float]]:
    """What the policy lost at every budget, and for budgets in time what its curve says."""
    dense, lost, expected = result.points[0], [], []
    for point in result.points:
        if point.arm == "policy":
            lost.append(point.nats - dense.nats)
            if result.settings.get("currency") == "time":
                expected.append(curve.loss(point.budget, result.settings["context"])[0])
    return lost, expected


def _range(values: list[float]) -> str:
    return " to ".join(f"{value:.3f}" for value in dict.fromkeys((min(values), max(values))))
