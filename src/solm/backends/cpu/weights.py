"""A frozen model's weight matrices in the engine's layout."""

import ctypes

import torch

from solm.backends.cpu import structs
from solm.backends.cpu.structs import BLOCK, GROUP
from solm.core.nested import nested

INTEGERS = ("int8", "int4", "nested")
PACKED = ("int4", "nested")
"""Precisions in which a matrix that lies on a grid of 4 bits is packed."""


class Stored:
    """What the engine reads of one matrix: tensors, which `move` places in memory of the engine."""

    _names: tuple[str, ...] = ()

    @property
    def room(self) -> int:
        """Bytes in memory, every part rounded up to whole cache lines."""
        return sum(_lines(part) for part in self._parts.values())

    @property
    def _parts(self) -> dict[str, torch.Tensor]:
        named = {name: getattr(self, name) for name in self._names}
        return {name: part for name, part in named.items() if part is not None}

    @property
    def _addresses(self) -> dict[str, int]:
        return {name: part.data_ptr() for name, part in self._parts.items()}

    def move(self, address: int) -> None:
        """Copy all parts to `address`, and use them there from now on."""
        for name, part in self._parts.items():
            memory = (ctypes.c_char * part.nbytes).from_address(address)
            setattr(self, name, torch.frombuffer(memory, dtype=part.dtype).view(part.shape).copy_(part))
            address += _lines(part)


class Matrix(Stored):
    """A weight matrix in the engine's layout, input-major; csrc/structs.h describes its forms.

    data: [in, out] floats, [in, out] uint8 with a scale per output, or rows of packed numbers of `bits` bits. grid: of
    packed numbers, [groups, outputs] steps with lowest = -centre * step, or with centre -1 [groups, 2, outputs].
    """

    _names = ("data", "scale", "grid")

    def __init__(
        self,
        outputs: int,
        data: torch.Tensor,
        scale: torch.Tensor | None = None,
        grid: torch.Tensor | None = None,
        bits: int = 0,
        group: int = GROUP,
        centre: int = -1,
    ):
        self.outputs, self.data, self.scale, self.grid = outputs, data, scale, grid
        self.bits, self.group, self.centre = bits, group, centre

    @classmethod
    def of(cls, weight: torch.Tensor, precision: str) -> "Matrix":
        """A matrix from float weights [out, in]."""
        weight, out = weight.detach(), len(weight)
        found = grid_of(weight) if precision in PACKED and out % BLOCK == 0 else None
        if found is not None:
            return cls.packed(*found, bits=4)
        if precision in INTEGERS:
            numbers, scale = rounded(weight)
            return cls(out, _in_blocks(numbers.T), scale)
        return cls(out, weight.to(FLOATS[precision]).T.contiguous())

    @classmethod
    def nested(cls, weight: torch.Tensor) -> "Matrix":
        """A matrix of 8 bits from float weights [out, in]; in must be a multiple of 32, out one of 64."""
        return cls.packed(*nested(weight, GROUP), bits=8)

    @classmethod
    def packed(
        cls,
        numbers: torch.Tensor,
        step: torch.Tensor,
        lowest: torch.Tensor | None = None,
        *,
        bits: int,
        group: int = GROUP,
        centre: int = -1,
    ) -> "Matrix":
        """A matrix of numbers [out, in] uint8 below 2 ** bits, with steps and lowest values [out, in / group]."""
        low_bits = bits - 4
        data = _in_pairs(numbers >> low_bits)
        if low_bits:
            data = torch.cat([data, _in_fields(numbers & (1 << low_bits) - 1, low_bits)], 1)
        grid = step.T if lowest is None else torch.stack([step.T, lowest.T], 1)
        return cls(len(numbers), data, None, grid.to(torch.float16).contiguous(), bits, group, centre)

    @property
    def struct(self) -> structs.Matrix:
        """Where its parts are, which must outlive what reads them."""
        return structs.Matrix(
            outputs=self.outputs, bits=self.bits, group=self.group, centre=self.centre, **self._addresses
        )


FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _lines(part: torch.Tensor) -> int:
    return -(-part.nbytes // 64) * 64


def rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [out, in] as int8 plus 128 in uint8, and the scale of every output."""
    weight = weight.float()
    scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
    return ((weight / scale).round() + 128).to(torch.uint8), scale[:, 0].contiguous()


def grid_of(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Weights [out, in] that lie on grids of 16 values, one for 32 inputs of an output: numbers [out, in] in uint8, and
    the steps and lowest values [out, in / 32]. None for any other weights.

    GGUF's Q4_0 and Q4_1 are such grids. Weights may be off by the rounding of their dtype, and no more.
    """
    if weight.shape[1] % GROUP:
        return None
    groups = weight.float().unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    allowed = 2 * torch.finfo(weight.dtype).eps * groups.abs().amax(-1, keepdim=True) + 1e-12
    above, span, limit = (groups - low).flatten(0, 1), (high - low).flatten(0, 1), allowed.flatten(0, 1)
    step = torch.zeros_like(span)
    rest = (span[:, 0] > 0).nonzero()[:, 0]
    # The extreme values are on the grid; the number of steps between them is unknown. Few groups need a second guess.
    for steps in range(15, 0, -1):
        part, guess = above[rest], (span[rest] / steps).clamp(min=1e-30)
        off = (part - (part / guess).round() * guess).abs().amax(-1, keepdim=True)
        fits = (off <= limit[rest])[:, 0]
        step[rest[fits]] = guess[fits]
        rest = rest[~fits]
    if len(rest):
        return None
    step = step.view(low.shape)
    numbers = ((groups - low) / step.clamp(min=1e-30)).round().clamp(0, 15).to(torch.uint8).flatten(1)
    return numbers, step[..., 0], low[..., 0]


def _in_pairs(numbers: torch.Tensor) -> torch.Tensor:
    """Numbers of 4 bits [out, in], two to a byte in the order of dot_integer.h: [in, out / 2]."""
    blocks = _in_blocks(numbers.T)
    whole = len(numbers) // 128 * 128
    pairs = blocks[:, :whole].unflatten(1, (-1, 2, 64)).transpose(1, 2)
    single = blocks[:, whole:].unflatten(1, (2, -1)).transpose(0, 1)
    first, second = (torch.cat([pairs[:, half].flatten(1), single[half]], 1) for half in (0, 1))
    return (first + second * 16).contiguous()


def _in_fields(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Numbers of 1, 2 or 4 bits [out, in], several to a byte in the order of dot_packed.h: [in, 64 * chunks]."""
    of_chunk = 8 // bits
    blocks = _in_blocks(torch.nn.functional.pad(numbers.T, (0, -len(numbers) % (of_chunk * BLOCK))))
    fields = blocks.unflatten(1, (-1, of_chunk, BLOCK)).int() << (torch.arange(of_chunk) * bits)[:, None]
    return fields.sum(2).to(torch.uint8).flatten(1)


def _in_blocks(bytes_: torch.Tensor) -> torch.Tensor:
    """Bytes [in, out] in the order of dot_integer.h, with zeros up to a whole block of 64 outputs."""
    padded = torch.nn.functional.pad(bytes_, (0, -bytes_.shape[1] % BLOCK))
    return padded.unflatten(1, (-1, 4, 4, 4)).transpose(2, 3).flatten(1).contiguous()
