"""What a model takes in memory on the cpu backend, before anything is loaded."""

from dataclasses import dataclass

from solm.backends.cpu.border import PAGE
from solm.backends.cpu.files.layout import layout_of
from solm.backends.cpu.files.source import WeightSource
from solm.backends.cpu.head_layout import HeadLayout
from solm.core.cost import ModelShapes


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


def with_stored_bits(shapes: ModelShapes, layers: int, head: int, float32: bool, int8: bool) -> ModelShapes:
    """`shapes` with the bits of a number, for layers and a head of so many bytes, and keys and values in float32, in
    int8 or else in bfloat16. As csrc/cache.h has them: int8 with a scale of 4 bytes per token and head, and bounds in
    bfloat16."""
    floats = 32 if float32 else 16
    return shapes.model_copy(
        update={
            "weight_bits": 8 * layers / (shapes.layers * shapes.layer_weights),
            "head_bits": 8 * head / shapes.head_weights,
            "cache_bits": 8 * (shapes.head_dim + 4) / shapes.head_dim if int8 else floats,
            "bound_bits": floats,
        }
    )


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


def cache_memory(shapes: ModelShapes, tokens: int, float32: bool, int8: bool) -> int:
    """Bytes of keys, values and the bounds of keys of one row of `tokens`, held as in `with_stored_bits`.

    Between pages the engine leaves up to 4 KiB, for the processor's caches, that are not counted here.
    """
    pages = -(-tokens // PAGE)
    tiles = -(-pages // PAGE)
    tile = PAGE * shapes.head_dim * (4 if float32 else 2)
    page = PAGE * (shapes.head_dim + 4) if int8 else tile
    return 2 * shapes.layers * shapes.kv_heads * (pages * page + tiles * tile)
