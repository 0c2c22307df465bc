"""What a model makes of each source of text, and whether that is like the text that a policy was measured on."""

import numpy as np
import torch

from solm.core.curve import TextFacts
from solm.data.windows import TokenStream
from solm.evaluation.result import EvaluationResult
from solm.runtime.language_model import LanguageModel


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
