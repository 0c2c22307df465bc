"""Where every weight of a model goes in the engine's memory, by types and shapes, before any weight is read; and how
much memory a model takes there."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from solm.backends.cpu.border import PAGE, STRIP
from solm.backends.cpu.files.sources import QUANTISED, Numbers, Tensor, WeightSource
from solm.backends.cpu.files.spec import ModelSpec
from solm.core.cost import ModelShapes

PRECISIONS = ("auto", "float32", "bfloat16", "int8", "int4", "nested")
"""``auto``: a file's own types, and int8 for floats. ``int4``: types of 4 bits as they are, others rounded to 4 bits
with a step per 32 channels. ``nested``: 8 bits in two halves of 4."""
SITES = {
    "qkv": ("q", "k", "v"), "out": ("out",), "gate_up": ("gate", "up"), "down": ("down",),
    "shared_gate_up": ("shared_gate", "shared_up"), "shared_down": ("shared_down",),
}  # fmt: skip
"""The matrix products of a layer, in the order in which a step reads them, and the tensors of each, of which some may
be lacking."""
MLP = ("gate_up", "down")
"""Those of the MLP, of which every expert has its own."""
_BLOCK, _LINE = 64, 64
"""Outputs that are stored together, and bytes to whose multiples everything is aligned."""
FLOATS = {"float32": 4, "bfloat16": 2}
"""Precisions of floats, and bytes of a number."""
_LEAST_BITS = 6
"""Of weights whose upper 4 bits are worth reading alone."""


class Target(IntEnum):
    """What a tensor is turned into; csrc/repack.h."""

    OWN, INT8, BFLOAT16, FLOAT32, NESTED, INT4 = range(6)


@dataclass(frozen=True)
class Form:
    """How a matrix is stored. numbers: of a packed one; None for int8 and floats."""

    target: Target
    numbers: Numbers | None = None

    @property
    def name(self) -> str:
        """What is in memory, such as ``5 bits`` or ``int8``."""
        if self.numbers is None or self.target == Target.NESTED:
            return self.target.name.lower()
        return f"{self.numbers.bits} bits"

    def sizes(self, inputs: int, outputs: int) -> dict[str, int]:
        """Bytes of the parts of a matrix, in their order in memory; csrc/structs.h says what they hold."""
        if self.numbers is not None:
            low, groups = self.numbers.bits - 4, inputs // self.numbers.group
            row = outputs // 2 + (_up(outputs // _BLOCK, 8 // low) // (8 // low) * _BLOCK if low else 0)
            return {"data": inputs * row, "grid": groups * (2 if self.numbers.centre < 0 else 1) * outputs * 2}
        if self.target == Target.INT8:
            return {"data": inputs * _up(outputs, _BLOCK), "scale": outputs * 4}
        return {"data": inputs * outputs * (2 if self.target == Target.BFLOAT16 else 4)}


@dataclass(frozen=True)
class HeadForm:
    """How the output head [vocabulary, hidden] is stored; csrc/structs.h and csrc/head.h describe its parts.

    bits: 4, 5, 6 or 8; 0 for floats of `number` bytes. group: input channels that share a step of the grid, 16 or 32;
    0: a scale per output. centre: the number that stands for zero; -1: groups have lowest values.
    """

    vocabulary: int
    hidden: int
    bits: int
    group: int
    centre: int
    number: int = 0

    @classmethod
    def of(cls, tensor: Tensor, precision: str) -> "HeadForm":
        """Of a tensor: floats or 4 bits where the precision says so, else its own numbers, or int8 where it has
        floats."""
        if precision in FLOATS:
            return cls(tensor.outputs, tensor.inputs, 0, 0, 0, FLOATS[precision])
        numbers = QUANTISED.get(tensor.type, Numbers(8, 0, 128))
        if _is_rounded(tensor, precision):
            numbers = _INT4_NUMBERS
        return cls(tensor.outputs, tensor.inputs, numbers.bits, numbers.group, numbers.centre)

    def places(self) -> dict[str, int]:
        """Where every part that there is begins, and under ``end`` where the last one ends: bytes, in whole lines."""
        strips, quads, low_bits = _up(self.vocabulary, STRIP) // STRIP, _up(self.hidden, 4) // 4, self.bits - 4
        if not self.bits:
            return {"data": 0, "end": _up(self.vocabulary * self.hidden * self.number, _LINE)}
        sizes = {"data": strips * quads * 64}
        if low_bits:
            sizes["low"] = strips * (_up(quads * low_bits, 4) // 4) * 64
        if self.group:
            sizes["grid"] = strips * (self.hidden // self.group) * (2 if self.centre < 0 else 1) * STRIP * 2
        else:
            sizes["scale"] = strips * STRIP * 4
        places, at = {}, 0
        for name, size in sizes.items():
            places[name], at = at, _up(at + size, _LINE)
        return places | {"end": at}


INT8 = Form(Target.INT8)
NESTED = Form(Target.NESTED, Numbers(8, 32, -1))
_INT4_NUMBERS = Numbers(4, 32, 8)
INT4 = Form(Target.INT4, _INT4_NUMBERS)
_CHOSEN = {"int8": INT8, "bfloat16": Form(Target.BFLOAT16), "float32": Form(Target.FLOAT32)}


@dataclass(frozen=True)
class Part:
    """Neighbouring tensors of a product that are stored as one matrix. tensors: our names. places: where the parts that
    its form has begin, counted from the layout's start. expert: whose they are; None in layers without."""

    form: Form
    tensors: tuple[str, ...]
    inputs: int
    outputs: int
    places: dict[str, int]
    expert: int | None = None

    @property
    def nbytes(self) -> int:
        return sum(self.form.sizes(self.inputs, self.outputs).values())


@dataclass(frozen=True)
class Layout:
    """All matrices of all layers, next to one another in the order in which a step reads them, by the names of `SITES`
    and the numbers of experts, or None; after them, from `head_at` on, the head. row_orders: a digest of the orders in
    which rows of the source's tensors are taken."""

    layers: tuple[dict[tuple[str, int | None], tuple[Part, ...]], ...]
    head: HeadForm
    head_at: int
    row_orders: str

    @property
    def nbytes(self) -> int:
        return self.head_at + self.head.places()["end"]

    def parts(self) -> Iterator[tuple[int, Part]]:
        """The parts of all layers, each with its layer's number."""
        for number, layer in enumerate(self.layers):
            for parts in layer.values():
                yield from ((number, part) for part in parts)

    def forms(self) -> dict[str, int]:
        """Bytes in memory by the names of forms, most first."""
        total: Counter[str] = Counter()
        for _, part in self.parts():
            total[part.form.name] += part.nbytes
        return dict(total.most_common())

    def digest(self) -> str:
        """Differs for another layout."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


def layout_of(source: WeightSource, precision: str) -> Layout:
    """How the matrices of a source are stored with `precision`, one of `PRECISIONS`."""
    layers, place, orders = [], 0, hashlib.sha256()
    experts = range(source.spec.experts) if source.spec.experts else (None,)
    read = [("qkv", None), ("out", None), *((site, expert) for expert in experts for site in MLP)]
    read += [("shared_gate_up", None), ("shared_down", None)] if source.spec.shared else []
    for layer in range(source.spec.layers):
        sites = {}
        for site, expert in read:
            tensors = {name: source.tensor(name, layer, expert) for name in names_of(source.spec, site)}
            for order in (tensor.row_order for tensor in tensors.values()):
                orders.update(b"as stored" if order is None else order.tobytes())
            parts = []
            for form, members in _forms(tensors, precision):
                inputs, outputs = tensors[members[0]].inputs, sum(tensors[name].outputs for name in members)
                places = {}
                for what, size in form.sizes(inputs, outputs).items():
                    places[what], place = place, _up(place + size, _LINE)
                parts.append(Part(form, members, inputs, outputs, places, expert))
            sites[site, expert] = tuple(parts)
        layers.append(sites)
    head = HeadForm.of(source.tensor("head"), precision)
    return Layout(tuple(layers), head, place, orders.hexdigest())


def names_of(spec: ModelSpec, site: str) -> tuple[str, ...]:
    """Our names of the tensors of a product that the layers of a model have."""
    return tuple(name for name in SITES[site] if name in spec.description.names)


def with_stored_bits(shapes: ModelShapes, layout: Layout, float32: bool, value_bits: int) -> ModelShapes:
    """`shapes` with the bits of a stored number: of weights in `layout` (of experts, those of average size that a token
    visits), of keys in int8 and of values in `value_bits`, with a scale of 4 bytes per token and head. With value_bits
    0 keys and values are in float32, or else in bfloat16."""
    floats, head = 32 if float32 else 16, layout.head.places()["end"]
    experts = max((part.expert + 1 for _, part in layout.parts() if part.expert is not None), default=1)
    read = sum(
        part.nbytes * (1 if part.expert is None else shapes.experts_used / experts) for _, part in layout.parts()
    )
    return shapes.model_copy(
        update={
            "weight_bits": 8 * read / (shapes.layers * shapes.layer_weights),
            "head_bits": 8 * head / shapes.head_weights,
            "cache_bits": (8 + value_bits) / 2 + 32 / shapes.head_dim if value_bits else floats,
            "bound_bits": floats,
        }
    )


def cache_memory(shapes: ModelShapes, tokens: int, float32: bool, value_bits: int) -> int:
    """Bytes of keys, values and the bounds of keys of one row of `tokens`, held as in `with_stored_bits`.

    Between pages the engine leaves up to 4 KiB, for the processor's caches, that are not counted here.
    """
    pages = -(-tokens // PAGE)
    tiles = -(-pages // PAGE)
    tile = 2 * PAGE * shapes.head_dim * (4 if float32 else 2)
    page = PAGE * (shapes.head_dim * (8 + value_bits) // 8 + 8) if value_bits else tile
    return shapes.layers * shapes.kv_heads * (pages * page + tiles * tile)


def readable_in_part(source: WeightSource) -> bool:
    """Whether steps can leave out two bits or more of every weight of the MLPs as a file stores them.

    Of 5 bits one could be left out, which saves little; of 4 bits none.
    """
    expert = 0 if source.spec.experts else None  # whose types are those of the others
    names = [name for site in MLP for name in names_of(source.spec, site)]
    tensors = (source.tensor(name, layer, expert) for layer in range(source.spec.layers) for name in names)
    numbers = [QUANTISED.get(tensor.type) for tensor in tensors]
    return all(one is not None and one.bits >= _LEAST_BITS for one in numbers)


def _forms(tensors: dict[str, Tensor], precision: str) -> list[tuple[Form, tuple[str, ...]]]:
    """The form of every part of a product, and the names of its tensors."""
    parts = _merged([(_form(tensor, precision), (name,)) for name, tensor in tensors.items()])
    counts = [sum(tensors[name].outputs for name in names) for _, names in parts]
    last = parts[-1][0].numbers is not None
    if any(count % _BLOCK for count in (counts if last else counts[:-1])):
        # Packed outputs and all but the last come in whole blocks.
        return [(INT8, tuple(tensors))]
    return parts


def _merged(parts: list[tuple[Form, tuple[str, ...]]]) -> list[tuple[Form, tuple[str, ...]]]:
    """The same with neighbours of one form together."""
    merged = parts[:1]
    for form, names in parts[1:]:
        if form == merged[-1][0]:
            merged[-1] = (form, merged[-1][1] + names)
        else:
            merged.append((form, names))
    return merged


def _form(tensor: Tensor, precision: str) -> Form:
    if precision in _CHOSEN:
        return _CHOSEN[precision]
    if precision == "nested":
        return NESTED if tensor.inputs % 32 == 0 else INT8
    if _is_rounded(tensor, precision):
        return INT4
    numbers = QUANTISED.get(tensor.type)
    return INT8 if numbers is None else Form(Target.OWN, numbers)


def _is_rounded(tensor: Tensor, precision: str) -> bool:
    """Whether the weights of a tensor become int4, which have more bits in its file."""
    numbers = QUANTISED.get(tensor.type)
    return precision == "int4" and tensor.inputs % 32 == 0 and (numbers is None or numbers.bits > 4)


def _up(count: int, to: int) -> int:
    return -(-count // to) * to
