"""The model's own dense samples: text of the kind that it will see when it generates."""

from collections.abc import Callable

import torch

from solm.runtime.language_model import LanguageModel


@torch.no_grad()
def sample_tokens(
    lm: LanguageModel,
    starts: torch.Tensor,
    length: int,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> torch.Tensor:
    """Every row of starts [N, C], continued densely at temperature 1 to `length` tokens in all: [N, length] int64.

    progress: called with the number of steps done.
    """
    generator = torch.Generator().manual_seed(seed)
    session = lm.session(capacity=length)
    logits = session.prefill(starts)
    rows = [starts]
    for step in range(length - starts.shape[1]):
        probabilities = logits.float().softmax(-1).cpu()
        token = torch.multinomial(probabilities, 1, generator=generator)
        rows.append(token)
        logits = session.step(token[:, 0]).logits[:, 0]
        progress(step + 1)
    return torch.cat(rows, 1)


def sample_texts(lm: LanguageModel, starts: torch.Tensor, length: int, seed: int = 0) -> list[str]:
    """The same as text."""
    assert lm.tokenizer is not None
    return list(lm.tokenizer.batch_decode(sample_tokens(lm, starts, length, seed), skip_special_tokens=True))
