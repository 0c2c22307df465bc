"""KV cache of N rows, with page bounds kept incrementally.

Rows of equal length hand transformers the very tensors a `DynamicCache` would, so that dense passes equal the stock
model bit for bit.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from solm.core.errors import UnsupportedModelError


def page_bounds(keys: torch.Tensor, page: int) -> torch.Tensor:
    """Minimum and maximum of every channel of keys [..., n·page, D] in every page: [2, ..., n, D]."""
    pages = keys.unflatten(-2, (-1, page))
    return torch.stack([pages.amin(-2), pages.amax(-2)])


@dataclass(frozen=True)
class KeyValues:
    """keys, values: [N, H, T, D]. bounds: `page_bounds` of the keys' whole pages, where pages are used."""

    keys: torch.Tensor
    values: torch.Tensor
    bounds: torch.Tensor | None = None


class PagedLayer(DynamicLayer):
    """One layer's keys and values, [N, H, capacity, D], of which the longest row fills the first `length` slots."""

    keys: torch.Tensor  # type: ignore[assignment]  # None until the first update
    values: torch.Tensor  # type: ignore[assignment]

    def __init__(self, page_size: int, sliding_window: int | None = None, capacity: int = 0):
        super().__init__()
        self.page_size, self.sliding_window, self.capacity = page_size, sliding_window, capacity
        self.is_sliding = sliding_window is not None
        self.length = 0
        self.write_slots: torch.Tensor | None = None
        """[N, Q] slot of each new token where rows differ; None: the next free ones for every row."""
        self._bounds: torch.Tensor
        """Of the first pages, as far as anybody needed them; right for those that are whole in their row."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, heads, length, size = key_states.shape
        self.dtype, self.device = key_states.dtype, key_states.device
        room = max(self.capacity, length)
        self.keys = key_states.new_zeros(rows, heads, room, size)
        self.values = value_states.new_zeros(rows, heads, room, value_states.shape[-1])
        self._bounds = page_bounds(self.keys[:, :, :0], self.page_size)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [N, H, Q, D] and return what the stock model would attend to (all keys, or the sliding window's)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = key_states.shape[2]
        have, needed = self.keys.shape[2], self.length + new
        if needed > have:
            self._widen(max(needed, have + have // 2))
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            if self.write_slots is None:
                buffer[:, :, self.length : self.length + new] = states
            else:
                slots = self.write_slots.to(buffer.device)[:, None, :, None]
                buffer.scatter_(2, slots.expand_as(states), states)
        self.length += new
        first = 0 if self.sliding_window is None else max(0, self.length - new - self.sliding_window + 1)
        return self.keys[:, :, first : self.length], self.values[:, :, first : self.length]

    def _widen(self, capacity: int) -> None:
        pad = (0, 0, 0, capacity - self.keys.shape[2])
        self.keys, self.values = (torch.nn.functional.pad(buffer, pad) for buffer in (self.keys, self.values))

    def held(self, with_bounds: bool) -> KeyValues:
        """What is held; with the bounds of every page that is whole in the longest row where asked for, of which only
        those are computed that were not known."""
        page, done, whole = self.page_size, self._bounds.shape[3], self.length // self.page_size
        if with_bounds and whole > done:
            newer = page_bounds(self.keys[:, :, done * page : whole * page], page)
            self._bounds = torch.cat([self._bounds, newer], 3)
        bounds = self._bounds if with_bounds else None
        return KeyValues(self.keys[:, :, : self.length], self.values[:, :, : self.length], bounds)

    def forget_bounds(self, first: int) -> None:
        """Slots from `first` on are going to be written: what is known of their pages no longer holds."""
        if self.is_initialized:
            self._bounds = self._bounds[:, :, :, : first // self.page_size]

    def truncate(self, longest: int) -> None:
        """Forget slots from `longest` on."""
        self.length = longest
        self.forget_bounds(longest)

    def take(self, index: torch.Tensor, length: int, capacity: int) -> "PagedLayer":
        """A layer of the rows index [n] of this one and their first `length` slots."""
        child = PagedLayer(self.page_size, self.sliding_window, capacity)
        index = index.to(self.keys.device)
        keys, values = self.keys[index, :, :length], self.values[index, :, :length]
        child.lazy_initialization(keys, values)
        child.update(keys, values)
        child._bounds = self._bounds[:, index, :, : length // self.page_size]
        return child

    def join(self, other: "PagedLayer") -> None:
        """Append the rows of `other`."""
        both = self, other
        self.length = max(layer.length for layer in both)
        capacity, known = max(layer.keys.shape[2] for layer in both), min(layer._bounds.shape[3] for layer in both)
        for layer in both:
            layer._widen(capacity)
        self.keys, self.values = (
            torch.cat(some) for some in ([layer.keys for layer in both], [layer.values for layer in both])
        )
        self._bounds = torch.cat([layer._bounds[:, :, :, :known] for layer in both], 1)

    def leave(self, row: int) -> None:
        """Drop a row; the last one takes its place."""
        for buffer in (self.keys, self.values, *self._bounds):
            buffer[row] = buffer[-1].clone()
        self.keys, self.values, self._bounds = self.keys[:-1], self.values[:-1], self._bounds[:, :-1]

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys returned by the next update, position of the first of them), as for the stock layers."""
        first = 0 if self.sliding_window is None else max(0, self.length - self.sliding_window + 1)
        return self.length + query_length - first, first


class PagedCache(Cache):
    """A `PagedLayer` for every full or sliding attention layer of the model."""

    layers: list[PagedLayer]  # type: ignore[assignment]

    def __init__(self, layers: list[PagedLayer]):
        super().__init__(layers=list(layers))

    @classmethod
    def empty(cls, config: PretrainedConfig, page_size: int, capacity: int) -> "PagedCache":
        """Raises `UnsupportedModelError` for models with layers other than full or sliding attention."""
        layers = []
        for index, layer in enumerate(DynamicCache(config=config).layers):
            if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
                raise UnsupportedModelError(
                    f"layer {index} of {config.model_type!r} caches a {type(layer).__name__}; "
                    "only full and sliding-window attention layers are supported"
                )
            layers.append(PagedLayer(page_size, getattr(layer, "sliding_window", None), capacity))
        return cls(layers)

    def write_to(self, slots: torch.Tensor | None, first: int) -> None:
        """Where the next update puts its tokens: [N, Q] slots, the least of which is `first`, or None for the next free
        ones."""
        for layer in self.layers:
            layer.write_slots = slots
            layer.forget_bounds(first)

    def of_each(self, make: Callable[[PagedLayer], PagedLayer]) -> "PagedCache":
        """The cache of the layers that `make` gives for this one's."""
        return PagedCache([make(layer) for layer in self.layers])

    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token of one row."""
        buffers = [buffer for layer in self.layers for buffer in (layer.keys, layer.values) if buffer is not None]
        return sum(buffer.shape[1] * buffer.shape[3] * buffer.element_size() for buffer in buffers)
