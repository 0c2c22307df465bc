"""KV cache of N = S·K rows that share S prefixes, with page bounds kept incrementally.

A never-forked session holds everything in one buffer per layer and hands transformers the very tensors a
`DynamicCache` would, so that dense passes equal the stock model bit for bit. After `fork` a row owns only what
follows the last whole page of its prefix; the pages before that are read from the parent, never copied.
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
    """keys, values: [S, H, K, T, D]; K is 1 for a prefix. bounds: `page_bounds` of the keys' whole pages, where pages
    are used."""

    keys: torch.Tensor
    values: torch.Tensor
    bounds: torch.Tensor | None = None


class PagedLayer(DynamicLayer):
    """One layer's keys and values, [S, H, K, capacity, D], of which the first `length` slots are filled."""

    keys: torch.Tensor  # type: ignore[assignment]  # None until the first update
    values: torch.Tensor  # type: ignore[assignment]

    def __init__(self, page_size: int, sliding_window: int | None = None, capacity: int = 0):
        super().__init__()
        self.page_size, self.sliding_window, self.capacity = page_size, sliding_window, capacity
        self.is_sliding = sliding_window is not None
        self.length = 0
        self.spread = 0
        """Difference in own length between the longest and the shortest row."""
        self.forks = 1
        self.prefix: KeyValues | None = None
        self.write_slots: torch.Tensor | None = None
        """[N, Q] own slot of each new token where rows differ; None: the next free ones for every row."""
        self._bounds: torch.Tensor
        """Of the first pages, as far as anybody needed them; right for those that are whole in their row."""
        self._room: dict[str, torch.Tensor] = {}
        """The buffers that keys and values are the first rows of, where there is room for more."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, heads, length, _ = key_states.shape
        self.dtype, self.device = key_states.dtype, key_states.device
        shape = (rows // self.forks, heads, self.forks, max(self.capacity, length))
        self.keys = key_states.new_zeros(*shape, key_states.shape[-1])
        self.values = value_states.new_zeros(*shape, value_states.shape[-1])
        self._bounds = page_bounds(self.keys[:, :, :, :0], self.page_size)
        self.is_initialized = True

    def _grow(self, needed: int) -> None:
        have = self.keys.shape[3]
        if needed > have:
            pad = (0, 0, 0, max(needed, have + have // 2) - have)
            self.keys = torch.nn.functional.pad(self.keys, pad)
            self.values = torch.nn.functional.pad(self.values, pad)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [N, H, Q, D] and return what the stock model would attend to (all keys, or the sliding window's)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = key_states.shape[2]
        self._grow(self.length + new)
        if self.write_slots is not None and new > 1:
            self._cut_bounds((self.length - self.spread) // self.page_size)
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            spread = states.unflatten(0, (-1, self.forks)).transpose(1, 2)
            if self.write_slots is None:
                buffer[:, :, :, self.length : self.length + new] = spread
            else:
                slots = self.write_slots.to(buffer.device).unflatten(0, (-1, self.forks))[:, None, ..., None]
                buffer.scatter_(3, slots.expand_as(spread), spread)
        self.length += new
        if self.write_slots is not None and new == 1:
            self._refresh_bounds(self.write_slots.to(self.keys.device))
        if self.prefix is not None or self.forks > 1:
            return key_states, value_states
        first = 0 if self.sliding_window is None else max(0, self.length - new - self.sliding_window + 1)
        return self.keys[:, :, 0, first : self.length], self.values[:, :, 0, first : self.length]

    def own(self, with_bounds: bool) -> KeyValues:
        """The row's own tokens; with the bounds of every whole page where asked for."""
        bounds = self._page_bounds() if with_bounds else None
        return KeyValues(self.keys[:, :, :, : self.length], self.values[:, :, :, : self.length], bounds)

    def _page_bounds(self) -> torch.Tensor:
        """Bounds of the pages that are whole in the longest row; only newer ones are computed."""
        page, done, whole = self.page_size, self._bounds.shape[4], self.length // self.page_size
        if whole > done:
            newer = page_bounds(self.keys[:, :, :, done * page : whole * page], page)
            self._bounds = torch.cat([self._bounds, newer], 4)
        return self._bounds

    def _cut_bounds(self, pages: int) -> None:
        self._bounds = self._bounds[:, :, :, :, :pages]

    def _refresh_bounds(self, slots: torch.Tensor) -> None:
        """Bounds of the one page that every row has just written to, at slots [N, 1]."""
        pages = self._bounds.shape[4]
        if not pages:
            return
        number = (slots // self.page_size).clamp(max=pages - 1).unflatten(0, (-1, self.forks))
        within = number * self.page_size + torch.arange(self.page_size, device=slots.device)
        sequences, heads, forks, _, size = self.keys.shape
        index = within[:, None, :, :, None].expand(sequences, heads, forks, self.page_size, size)
        fresh = page_bounds(self.keys.gather(3, index), self.page_size)
        self._bounds.scatter_(4, number[:, None, :, :, None].expand_as(fresh), fresh)

    def truncate(self, longest: int, shortest: int) -> None:
        """Forget slots from `longest` on; rows hold `shortest` to `longest` of their own tokens from now on."""
        self.length, self.spread = longest, longest - shortest
        self._cut_bounds(longest // self.page_size)

    def copy(self, length: int, capacity: int) -> "PagedLayer":
        """A layer of one sequence: the first `length` tokens of this one's first row."""
        child = PagedLayer(self.page_size, self.sliding_window, capacity)
        child.lazy_initialization(self.keys[:1, :, 0, :length], self.values[:1, :, 0, :length])
        child.keys[:, :, 0, :length] = self.keys[:1, :, 0, :length]
        child.values[:, :, 0, :length] = self.values[:1, :, 0, :length]
        child.length = length
        return child

    def join(self, other: "PagedLayer") -> None:
        """Append the sequences of `other`. Room for further ones is kept, so that most joins copy them alone."""
        bounded = self._bounds.shape[4] > 0
        if bounded:
            self._page_bounds()  # of all whole pages: below, those that are missing become zeros
        have, rows = len(self.keys), len(self.keys) + len(other.keys)
        capacity = max(self.keys.shape[3], other.keys.shape[3])
        for name in ("keys", "values"):
            mine, theirs = getattr(self, name), getattr(other, name)
            room = self._room.get(name)
            if room is None or len(room) < rows or mine.shape[3] < capacity or mine.data_ptr() != room.data_ptr():
                room = mine.new_zeros(rows + rows // 2, mine.shape[1], 1, capacity, mine.shape[4])
                room[:have, :, :, : self.length] = mine[:, :, :, : self.length]
            room[have:rows, :, :, : other.length] = theirs[:, :, :, : other.length]
            self._room[name] = room
            setattr(self, name, room[:rows])
        if bounded:
            both = self._bounds, other._page_bounds()
            pages = max(bounds.shape[4] for bounds in both)
            padded = [torch.nn.functional.pad(bounds, (0, 0, 0, pages - bounds.shape[4])) for bounds in both]
            self._bounds = torch.cat(padded, 1)
        else:
            self._bounds = page_bounds(self.keys[:, :, :, :0], self.page_size)

    def leave(self, row: int) -> None:
        """Drop a sequence; the last one takes its place."""
        for name in ("keys", "values"):
            buffer = getattr(self, name)
            if row < len(buffer) - 1:
                buffer[row, :, :, : self.length] = buffer[-1, :, :, : self.length]
            setattr(self, name, buffer[:-1])
        self._bounds[:, row] = self._bounds[:, -1].clone()
        self._bounds = self._bounds[:, :-1]

    def fork(self, forks: int, lengths: torch.Tensor, shared: int, capacity: int) -> "PagedLayer":
        """A layer of `forks` rows per sequence that reads the first `shared` slots from this one.

        lengths: [S] filled tokens of every sequence; what lies beyond its last whole page (less than a page, or
        more where other sequences are shorter than `shared`) is copied.
        """
        child = PagedLayer(self.page_size, self.sliding_window, capacity)
        child.forks = forks
        page = self.page_size
        base = lengths // page * page
        longest_tail = int((lengths - base).max())
        child.device, child.dtype, child.is_initialized = self.device, self.dtype, True
        child.length = longest_tail
        child.spread = longest_tail - int((lengths - base).min())
        size = max(capacity, longest_tail + 1)
        slots = (base[:, None] + torch.arange(longest_tail, device=base.device)).clamp(max=self.length - 1)
        slots = slots.to(self.keys.device)
        for name in ("keys", "values"):
            buffer = getattr(self, name)
            copy = buffer.new_zeros(*buffer.shape[:2], forks, size, buffer.shape[-1])
            index = slots[:, None, None, :, None].expand(*buffer.shape[:2], 1, -1, buffer.shape[-1])
            copy[:, :, :, :longest_tail] = buffer.gather(3, index)
            setattr(child, name, copy)
        child._bounds = page_bounds(child.keys[:, :, :, :0], page)
        if shared:
            bounds = self._page_bounds()[:, :, :, :, : shared // page]
            child.prefix = KeyValues(self.keys[:, :, :, :shared], self.values[:, :, :, :shared], bounds)
        return child

    def widen(self, times: int, capacity: int) -> "PagedLayer":
        """A layer with every row `times` times, next to one another: prefix shared, own tokens copied."""
        child = PagedLayer(self.page_size, self.sliding_window, capacity)
        child.__dict__.update(self.__dict__)
        child.forks = self.forks * times
        pad = (0, 0, 0, max(0, capacity - self.keys.shape[3]))
        child.keys = torch.nn.functional.pad(self.keys.repeat_interleave(times, 2), pad)
        child.values = torch.nn.functional.pad(self.values.repeat_interleave(times, 2), pad)
        child._bounds = self._bounds.repeat_interleave(times, 3)
        return child

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

    def write_to(self, slots: torch.Tensor | None) -> None:
        """Where the next update puts its tokens: [N, Q] own slots, or None for the next free ones."""
        for layer in self.layers:
            layer.write_slots = slots

    def of_each(self, make: Callable[[PagedLayer], PagedLayer]) -> "PagedCache":
        """The cache of the layers that `make` gives for this one's."""
        return PagedCache([make(layer) for layer in self.layers])

    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token of one row."""
        buffers = [buffer for layer in self.layers for buffer in (layer.keys, layer.values) if buffer is not None]
        return sum(buffer.shape[1] * buffer.shape[4] * buffer.element_size() for buffer in buffers)
