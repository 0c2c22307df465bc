"""The output head in the engine's layout, from float weights."""

import torch

from solm.backends.cpu import structs
from solm.backends.cpu.structs import GROUP, STRIP
from solm.backends.cpu.weights import FLOATS, INTEGERS, PACKED, Stored, grid_of, rounded


class Head(Stored):
    """The head [V, H]: rows of floats, or numbers in the strips of csrc/head.h; csrc/structs.h describes its forms.

    data: [V, H] floats, or the upper 4 bits of all numbers [strips, H / 4, 64]. low: their other bits. scale: a step
    per output [strips * 32]. grid: [strips, groups, 32] steps with lowest = -centre * step, or with centre -1
    [strips, groups, 2, 32] steps and lowest values.
    """

    _names = ("data", "low", "grid", "scale")

    def __init__(
        self,
        data: torch.Tensor,
        low: torch.Tensor | None = None,
        scale: torch.Tensor | None = None,
        grid: torch.Tensor | None = None,
        bits: int = 0,
        group: int = 0,
        centre: int = -1,
    ):
        self.data, self.low, self.scale, self.grid = data, low, scale, grid
        self.bits, self.group, self.centre = bits, group, centre

    @classmethod
    def of(cls, weight: torch.Tensor, precision: str) -> "Head":
        """A head from float weights [V, H]: floats, int8 with a scale per output, or 4 bits where weights lie on such a
        grid and the precision allows it."""
        weight = weight.detach()
        if precision not in INTEGERS:
            return cls(weight.to(FLOATS[precision]).contiguous())
        found = grid_of(weight) if precision in PACKED else None
        if found is not None:
            return cls.packed(*found, bits=4)
        numbers, scale = rounded(weight)
        padded = torch.nn.functional.pad(scale, (0, -len(weight) % STRIP))
        return cls(_in_strips(numbers >> 4, 4), _in_strips(numbers & 15, 4), padded, None, bits=8, centre=128)

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
    ) -> "Head":
        """A head of numbers [V, H] uint8 below 2 ** bits, with steps and lowest values [V, H / group]."""
        low_bits = bits - 4
        low = _in_strips(numbers & (1 << low_bits) - 1, low_bits) if low_bits else None
        grid = step[..., None] if lowest is None else torch.stack([step, lowest], -1)
        padded = torch.nn.functional.pad(grid, (0, 0, 0, 0, 0, -len(grid) % STRIP))
        grid = padded.unflatten(0, (-1, STRIP)).permute(0, 2, 3, 1).to(torch.float16).contiguous()
        return cls(_in_strips(numbers >> low_bits, 4), low, None, grid, bits, group, centre)

    @property
    def struct(self) -> structs.Head:
        """Where its parts are, which must outlive what reads them."""
        return structs.Head(bits=self.bits, group=self.group, centre=self.centre, **self._addresses)


def _in_strips(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Numbers of 1, 2 or 4 bits [V, H] in the order of csrc/head.h, with zeros up to whole strips and bytes:
    [strips, chunks, 64]. A chunk holds 16 / bits channels."""
    fields, channels = 8 // bits, 16 // bits
    padded = torch.nn.functional.pad(numbers, (0, -numbers.shape[1] % channels, 0, -len(numbers) % STRIP))
    # Strips, halves of 16 outputs, outputs, chunks, times four channels, channels.
    ordered = padded.view(-1, 2, 16, padded.shape[1] // channels, channels // 4, 4).permute(0, 3, 4, 1, 2, 5)
    parts = ordered.flatten(4).flatten(2, 3)
    stored = parts[:, :, 0].clone()
    for field in range(1, fields):
        stored |= parts[:, :, field] << field * bits
    return stored.contiguous()
