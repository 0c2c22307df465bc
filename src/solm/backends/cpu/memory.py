"""What a model takes in memory on the cpu backend, before anything is loaded."""

from dataclasses import dataclass

from solm.backends.cpu.files.layout import layout_of
from solm.backends.cpu.files.source import WeightSource
from solm.backends.cpu.files.spec import ModelSpec
from solm.backends.cpu.head_layout import HeadLayout
from solm.backends.cpu.structs import PAGE


@dataclass(frozen=True)
class WeightMemory:
    """Bytes of repacked weights. forms: of the layers', by how they are stored. head: of the output head. Embeddings
    are looked up in the file."""

    forms: dict[str, int]
    layers: int
    head: int

    @property
    def total(self) -> int:
        return self.layers + self.head


def weight_memory(source: WeightSource) -> WeightMemory:
    """What the weights take with precision ``auto``."""
    layout = layout_of(source, "auto")
    return WeightMemory(layout.forms(), layout.nbytes, HeadLayout.of(source.tensor("head")).room)


@dataclass(frozen=True)
class PageMemory:
    """What the KV caches of an engine hold: pages, and tiles of the bounds of 16 pages' keys; and the bytes of one."""

    pages: int
    tiles: int
    page_bytes: int
    tile_bytes: int

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return self.pages * self.page_bytes + self.tiles * self.tile_bytes


def cache_memory(spec: ModelSpec, tokens: int, int8: bool) -> int:
    """Bytes of keys, values and the bounds of keys of one row of `tokens`: csrc/cache.h."""
    pages = -(-tokens // PAGE)
    tiles = -(-pages // PAGE)
    page = PAGE * (spec.head_dim + 4) if int8 else PAGE * spec.head_dim * 2
    tile = PAGE * spec.head_dim * 2
    return 2 * spec.layers * spec.kv_heads * (pages * page + tiles * tile)
