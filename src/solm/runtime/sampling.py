"""Choosing the next token of one row: transformers' own processors and options."""

from copy import deepcopy
from typing import Any

import torch
from transformers import GenerationConfig

from solm.backends.threads import one_torch_thread
from solm.core.errors import SolmError
from solm.runtime.controlled import ControlledModel

SUPPORTED = (
    "do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "sequence_bias", "suppress_tokens",
    "begin_suppress_tokens", "min_length", "min_new_tokens", "exponential_decay_length_penalty",
    "remove_invalid_values", "renormalize_logits", "eos_token_id", "pad_token_id",
)  # fmt: skip
"""Generation options that are carried out. A reply is one row, which needs no padding, whatever the token."""


class Sampler:
    """What follows token ids [1, C], drawn with a generator of its own.

    processors: transformers' logits processors, in their order. draws: whether tokens are drawn; else the largest
    logit counts. stops: tokens after which a reply ends. beside_engine: whether steps run on the compiled engine.
    """

    def __init__(
        self,
        ids: torch.Tensor,
        seed: int,
        processors: Any,
        draws: bool,
        stops: frozenset[int] = frozenset(),
        beside_engine: bool = False,
    ):
        self._sequence, self._processors, self.draws, self.stops = ids, processors, draws, stops
        self.takes_largest = not draws and not processors
        """Whether the largest logit is all that counts."""
        self.generator = torch.Generator().manual_seed(seed)
        self._beside_engine = beside_engine

    @classmethod
    def of(cls, lm: ControlledModel, ids: torch.Tensor, seed: int, options: dict[str, Any]) -> "Sampler":
        """The sampler that transformers' generation options make.

        options: those in `SUPPORTED`; greedy unless one of temperature, top_p and top_k, or do_sample, is given.
        Temperature 0 is greedy. Raises `SolmError` for any other option, and for a value that transformers refuses.
        """
        config = deepcopy(lm.generator.generation_config)
        for name in options:
            if name not in SUPPORTED:
                known = name in {**GenerationConfig().to_dict(), **vars(config)}
                what = "is not supported" if known else "is unknown"
                raise SolmError(f"generation option {name!r} {what}; supported are {', '.join(SUPPORTED)}")
        if "do_sample" not in options:
            options = {**options, "do_sample": any(name in options for name in ("temperature", "top_p", "top_k"))}
        if options.get("temperature") == 0:
            options = {**options, "do_sample": False}
        config.update(**options)
        if not config.do_sample:
            config.temperature = config.top_p = config.top_k = None
        model: Any = lm.generator
        prepared, _ = model._prepare_generation_config(config)
        model._prepare_special_tokens(prepared, kwargs_has_attention_mask=True, device=ids.device)
        try:
            processors = model._get_logits_processor(
                prepared, input_ids_seq_length=ids.shape[1], device=ids.device.type
            )
        except ValueError as error:
            raise SolmError(f"generation options: {' '.join(str(error).split())}") from error
        ends = prepared.eos_token_id
        stops = frozenset(ends if isinstance(ends, list) else [ends])
        return cls(ids, seed, processors, bool(prepared.do_sample), stops, lm.beside_engine)

    def choose(self, logits: torch.Tensor) -> int:
        """The next token, from logits [V]; it counts as said from here on."""
        # The engine's logits are float32, the prefill's may not be; without torch no thread of its own wakes up.
        if self.takes_largest and self._beside_engine and logits.dtype == torch.float32:
            return int(logits.numpy().argmax())
        with one_torch_thread(self._beside_engine):
            scores = self.scores(logits)
            if self.draws:
                chosen = torch.multinomial(scores.softmax(-1).cpu(), 1, generator=self.generator)[None]
            else:
                chosen = scores.argmax(-1, keepdim=True).cpu()[None]
        self._sequence = torch.cat([self._sequence, chosen.to(self._sequence)], 1)
        return int(chosen)

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """What the next token is chosen by [V] float32: logits [V] after all processors."""
        processed: Any = self._processors(self._sequence.to(logits.device), logits[None].float())
        return processed[0]
