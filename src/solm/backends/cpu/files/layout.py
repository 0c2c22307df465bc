"""Where every weight of a model goes in the engine's memory: known from types and shapes, before any weight is read."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, replace
from enum import IntEnum

from solm.backends.cpu.files.source import WeightSource
from solm.backends.cpu.files.tensors import QUANTISED, Numbers, Tensor
from solm.core.errors import SolmError

PRECISIONS = ("auto", "float32", "bfloat16", "int8", "nested")
"""``auto``: a file's own types, and int8 for floats. ``nested``: 8 bits in two halves of 4."""
SITES = {"qkv": ("q", "k", "v"), "out": ("out",), "gate_up": ("gate", "up"), "down": ("down",)}
"""The matrix products of a layer, in the order in which a step reads them, and the tensors of each."""
_BLOCK, _LINE = 64, 64
"""Outputs that are stored together, and bytes to whose multiples everything is aligned."""
_LEAST_BITS = 6
"""Of weights whose upper 4 bits are worth reading alone."""


class Target(IntEnum):
    """What a tensor is turned into; csrc/repack.h."""

    OWN, INT8, BFLOAT16, FLOAT32, NESTED = range(5)


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


INT8 = Form(Target.INT8)
NESTED = Form(Target.NESTED, Numbers(8, 32, -1))
_CHOSEN = {"int8": INT8, "bfloat16": Form(Target.BFLOAT16), "float32": Form(Target.FLOAT32)}


@dataclass(frozen=True)
class Part:
    """Neighbouring tensors of a product that are stored as one matrix. tensors: our names. data, scale, grid:
    addresses, within a `Layout` counted from its start; None for those that the form lacks."""

    form: Form
    tensors: tuple[str, ...]
    inputs: int
    outputs: int
    data: int
    scale: int | None
    grid: int | None

    def moved(self, by: int) -> "Part":
        return replace(
            self,
            data=self.data + by,
            scale=None if self.scale is None else self.scale + by,
            grid=None if self.grid is None else self.grid + by,
        )


@dataclass(frozen=True)
class Site:
    """A matrix product, whose outputs come from up to three parts, one after another."""

    parts: tuple[Part, ...]

    def moved(self, by: int) -> "Site":
        return Site(tuple(part.moved(by) for part in self.parts))


@dataclass(frozen=True)
class Layout:
    """All matrices of all layers, next to one another in the order in which a step reads them, by the names of
    `SITES`. row_orders: a digest of the orders in which rows of the source's tensors are taken."""

    layers: tuple[dict[str, Site], ...]
    nbytes: int
    row_orders: str

    def forms(self) -> dict[str, int]:
        """Bytes in memory by the names of forms, most first."""
        total: Counter[str] = Counter()
        for layer in self.layers:
            for part in (part for site in layer.values() for part in site.parts):
                total[part.form.name] += sum(part.form.sizes(part.inputs, part.outputs).values())
        return dict(total.most_common())

    def digest(self) -> str:
        """Differs for another layout."""
        parts = [[name, *map(str, site.parts)] for layer in self.layers for name, site in layer.items()]
        return hashlib.sha256(json.dumps([self.nbytes, self.row_orders, parts]).encode()).hexdigest()


def layout_of(source: WeightSource, precision: str) -> Layout:
    """How the matrices of a source are stored with `precision`; raises `SolmError` for an unknown one."""
    if precision not in PRECISIONS:
        raise SolmError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    layers, place, orders = [], 0, hashlib.sha256()
    for layer in range(source.spec.layers):
        sites = {}
        for site, names in SITES.items():
            tensors = {name: source.tensor(name, layer) for name in names}
            for order in (tensor.row_order for tensor in tensors.values()):
                orders.update(b"as stored" if order is None else order.tobytes())
            parts = []
            for form, members in _forms(tensors, precision):
                inputs, outputs = tensors[members[0]].inputs, sum(tensors[name].outputs for name in members)
                at = {}
                for what, size in form.sizes(inputs, outputs).items():
                    at[what], place = place, _up(place + size, _LINE)
                parts.append(Part(form, members, inputs, outputs, at["data"], at.get("scale"), at.get("grid")))
            sites[site] = Site(tuple(parts))
        layers.append(sites)
    return Layout(tuple(layers), place, orders.hexdigest())


def readable_in_part(source: WeightSource) -> bool:
    """Whether steps can leave out two bits or more of every weight of the MLPs as a file stores them.

    Of 5 bits one could be left out, which saves little; of 4 bits none.
    """
    tensors = (source.tensor(name, layer) for layer in range(source.spec.layers) for name in ("gate", "up", "down"))
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
    found = parts[:1]
    for form, names in parts[1:]:
        if form == found[-1][0]:
            found[-1] = (form, found[-1][1] + names)
        else:
            found.append((form, names))
    return found


def _form(tensor: Tensor, precision: str) -> Form:
    if precision in _CHOSEN:
        return _CHOSEN[precision]
    if precision == "nested":
        return NESTED if tensor.inputs % 32 == 0 else INT8
    numbers = QUANTISED.get(tensor.type)
    return INT8 if numbers is None else Form(Target.OWN, numbers)


def _up(count: int, to: int) -> int:
    return -(-count // to) * to
