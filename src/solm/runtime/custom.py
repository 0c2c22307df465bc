"""Decoding under a budget inside transformers' own `model.generate`."""

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from solm.backends.session import AnyPolicy
from solm.core.arrays import as_numpy
from solm.core.budget import BudgetLike
from solm.core.errors import SolmError
from solm.runtime.batch import Row, decode
from solm.runtime.controlled import ControlledModel
from solm.runtime.sampling import Plain, Processed, Sampler

_BATCH = 16
"""Rows that decode together."""


def custom_generate(
    lm: ControlledModel, budget: BudgetLike, policy: str | AnyPolicy | None, streamer: Any
) -> Callable[..., torch.Tensor]:
    """The decoding loop that `model.generate(custom_generate=...)` calls, for the model of `lm`.

    transformers prepares the prompt, the logits processors and the stopping criteria, and pads what ended early; the
    steps follow the policy. It hands no streamer to such a loop, so that it is given here; who calls the loop ends it.
    """

    def loop(
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        if model is not lm.model:
            raise SolmError("custom_generate belongs to another model than the one that generates")
        for name, plain in (("num_beams", 1), ("return_dict_in_generate", False)):
            if getattr(generation_config, name) not in (None, plain):
                raise SolmError(f"generation option {name!r} is not supported under a budget")
        if streamer is not None and len(input_ids) != 1:
            raise SolmError(f"a streamer takes one prompt, got {len(input_ids)}")
        longest = int(generation_config.max_length) - input_ids.shape[1]
        decides, mask = lm.decider(policy, budget), kwargs.get("attention_mask")
        rows = []
        for number, padded in enumerate(input_ids):
            ids = padded if mask is None else padded[mask[number].bool()]
            # The global generator, so that torch.manual_seed and transformers' set_seed decide.
            seed = int(torch.randint(1 << 62, ()))
            own = _of_row(logits_processor, number)
            changes = [Processed(padded[None], own, lm.beside_engine)] if own else []
            sampler = Sampler(seed, changes, Plain() if generation_config.do_sample else None)
            target = lm.budget(budget, len(ids) + longest // 2, decides).shares
            criteria = partial(_ended, stopping_criteria, padded)
            rows.append(Row(as_numpy(ids), decides, target, longest, sampler, criteria=criteria))
        if streamer is not None:
            streamer.put(input_ids.cpu())
        for row in decode(lm, rows, _BATCH):
            if streamer is not None:
                streamer.put(torch.tensor([row.ids[-1]]))
        padding = generation_config._pad_token_tensor
        replies = pad_sequence([input_ids.new_tensor(row.ids) for row in rows], True, 0 if padding is None else padding)
        return torch.cat([input_ids, replies], 1)

    return loop


def _of_row(processors: Any, number: int) -> LogitsProcessorList:
    """Logits processors of a batch for its row `number` alone, with a state of their own."""
    own = LogitsProcessorList(map(copy, processors))
    for processor in own:
        if isinstance(processor, RepetitionPenaltyLogitsProcessor):
            padding = processor.prompt_ignore_length  # tokens of every row that do not count
            if isinstance(padding, torch.Tensor):
                processor.prompt_ignore_length = padding[number : number + 1]
    return own


def _ended(criteria: Any, prompt: torch.Tensor, reply: list[int]) -> bool:
    """Whether transformers' criteria end a reply to prompt [C], padding included."""
    return bool(criteria(torch.cat([prompt, prompt.new_tensor(reply)])[None], None).all())
