"""`LanguageModel`: what `solm.load` and `solm.attach` return."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from solm.backends.session import AnyPolicy
from solm.core.arrays import Array, as_tensor
from solm.core.budget import BudgetLike
from solm.core.errors import DataError
from solm.runtime.controlled import ControlledModel
from solm.runtime.generate import ending, generate, stream
from solm.runtime.prompts import Message, Prompt, Prompts, are_ids, encode, token_rows
from solm.runtime.reply import Reply, Token

if TYPE_CHECKING:
    import torch


class LanguageModel(ControlledModel):
    """A frozen model under control that generates: from text, conversations, token ids, or several of them."""

    @overload
    def generate(self, prompt: str | list[Message], **options: Any) -> Reply: ...
    @overload
    def generate(self, prompt: list[str] | list[list[Message]], **options: Any) -> list[Reply]: ...
    @overload
    def generate(self, prompt: Array | None = None, **options: Any) -> Any: ...
    def generate(self, prompt: Prompts | None = None, **options: Any) -> Any:
        """Generate under a budget; see `solm.runtime.generate.generate` for the options.

        The prompt is text, a list of messages (dicts with role and content), token ids [N, C] with their
        attention_mask, what a tokenizer returns (``generate(**inputs, budget=0.6)``), or a list of texts or of lists of
        messages. One prompt gives a `Reply`; several prompts, or N > 1, give a list of them.
        """
        with ending(options.get("streamer")):
            rows, several = self._rows(prompt, options)
            replies = generate(self, rows, **options)
        return replies if several else replies[0]

    def stream(self, prompt: Prompt | None = None, **options: Any) -> Iterator[Token]:
        """The reply to one prompt, token by token; see `solm.runtime.generate.stream` for the options."""
        rows, several = self._rows(prompt, options)
        if several:
            raise DataError(f"stream takes one prompt, got {len(rows)}; generate takes several")
        return stream(self, rows[0], **options)

    def custom_generate(
        self, budget: BudgetLike = None, policy: str | AnyPolicy | None = None, streamer: Any = None
    ) -> "Callable[..., torch.Tensor]":
        """A decoding loop for ``model.generate`` of the attached transformers model that keeps a budget.

        Pass it as ``custom_generate``; see `solm.custom_generate`, which attaches the model itself.
        """
        from solm.runtime import custom

        return ending(streamer)(custom.custom_generate(self, budget, policy, streamer))

    def encode(self, prompt: Prompt, system: str | None = None) -> "torch.Tensor":
        """Token ids [1, C] of a prompt, through the chat template where the tokenizer has one, after `system`."""
        if are_ids(prompt):
            rows, _ = token_rows(None, prompt)
            return as_tensor(np.concatenate(rows))
        return as_tensor(encode(self.tokenizer, prompt, system))  # type: ignore[arg-type]

    def _rows(self, prompt: Prompts | None, options: dict[str, Any]) -> tuple[list[np.ndarray], bool]:
        """The rows of a prompt, or of `input_ids` and `attention_mask` taken out of `options`."""
        rows, several = token_rows(
            self.tokenizer, prompt, options.pop("input_ids", None), options.pop("attention_mask", None)
        )
        options.pop("token_type_ids", None)  # some tokenizers return them; causal models read none
        for row in rows:
            low, high = int(row.min()), int(row.max())
            if low < 0 or high >= self.shapes.vocabulary:
                wrong = low if low < 0 else high
                raise DataError(f"token {wrong} is not among the model's {self.shapes.vocabulary}")
        return rows, several
