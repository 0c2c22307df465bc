"""The attention function that transformers calls: the model's own when dense, ours under a plan."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from solm.backends.torch.active import active_pass
from solm.backends.torch.attention import attend
from solm.core.errors import UnsupportedModelError

PREFIX = "solm_"


def register(base: str) -> str:
    """Register the controlled form of the attention implementation `base` and return its name.

    Both interfaces need the name: without a mask function transformers silently drops the padding mask.
    """
    name = PREFIX + base
    if name not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        AttentionInterface.register(name, _controlled(base))
        AttentionMaskInterface.register(name, _mask(base))
    return name


def _mask(base: str) -> Callable[..., Any]:
    def mask(*args: Any, **kwargs: Any) -> Any:
        # Under a plan the masks come from the layout of the shared cache, which transformers does not know.
        return None if active_pass() is not None else ALL_MASK_ATTENTION_FUNCTIONS[base](*args, **kwargs)

    return mask


def _controlled(base: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    def attention(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        current = active_pass()
        if current is None:
            if base == "eager":
                stock = sys.modules[type(module).__module__].eager_attention_forward
            else:
                stock = ALL_ATTENTION_FUNCTIONS[base]
            return stock(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        for extra in ("position_bias", "s_aux"):
            if kwargs.get(extra) is not None:
                raise UnsupportedModelError(f"{type(module).__name__} uses {extra}, which controlled attention lacks")
        current.follow(query.device)
        layer = current.cache.layers[module.layer_idx]
        own = layer.own(with_bounds=current.plan.sparse_attention and layer.sliding_window is None)
        output = attend(
            query,
            layer.prefix,
            own,
            current.layout,
            current.plan,
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
            softcap=kwargs.get("softcap"),
            sliding_window=layer.sliding_window,
        )
        return output.transpose(1, 2).contiguous(), None

    return attention
