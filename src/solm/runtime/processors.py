"""What only transformers can do to logits before a token is chosen: penalties, bans, biases and rarer cut-offs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig

from solm.backends.machine import one_torch_thread
from solm.core.arrays import Array, as_numpy, as_tensor
from solm.core.errors import SolmError


class Processed:
    """Scores of the token after ids [1, C] by transformers' logits processors, in their order.

    alone: whether torch must keep to one thread, see `one_torch_thread`.
    """

    def __init__(self, ids: Array, processors: Any, alone: bool = False):
        self._sequence, self._processors, self._alone = as_tensor(ids), processors, alone

    def scores(self, logits: Array) -> np.ndarray:
        """Logits [V] after all processors: [V] float32."""
        with one_torch_thread(self._alone):
            given = as_tensor(logits)
            found = self._processors(self._sequence.to(given.device), given[None].float())
            return as_numpy(found[0])

    def add(self, token: int) -> None:
        """`token` was chosen."""
        self._sequence = torch.cat([self._sequence, self._sequence.new_tensor([[token]])], 1)


class _Generator(GenerationMixin):
    """What transformers' generation options need to know of a model, without the model."""

    main_input_name = "input_ids"

    def __init__(self, generation_config: GenerationConfig):
        self.generation_config, self.config = generation_config, PretrainedConfig()
        self.device, self.dtype = torch.device("cpu"), torch.float32


def prepared(options: Mapping[str, Any], ids: Array) -> tuple[Any, Any, Any]:
    """transformers' logits processors for generation options and prompts of the length of ids [1, C], whether tokens
    are drawn, and the tokens that end a reply (one, several or None).

    Without the model, which would add its own options to those that are left out. Raises `SolmError` for a value that
    transformers refuses.
    """
    config = GenerationConfig()
    config.update(**options)
    generator: Any = _Generator(config)
    found, _ = generator._prepare_generation_config(config)
    device = as_tensor(ids).device
    generator._prepare_special_tokens(found, kwargs_has_attention_mask=True, device=device)
    try:
        processors = generator._get_logits_processor(found, input_ids_seq_length=ids.shape[1], device=device.type)
    except ValueError as error:
        raise SolmError(f"generation options: {' '.join(str(error).split())}") from error
    return processors, bool(found.do_sample), found.eos_token_id
