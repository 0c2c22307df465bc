"""The engine's output head alone: an engine whose layers add nothing, over states that are its tokens' embeddings."""

import ctypes
from typing import Any

import numpy as np
import torch

from solm.backends.budgets import ROW_STATE
from solm.backends.cpu import border
from solm.backends.cpu.border import GROUP, STRIP
from solm.backends.cpu.call import Cache, EngineCall
from solm.backends.cpu.engine import Engine
from solm.core.sparsity import SparsityConfig

FORMS = [
    (4, 16, 8), (4, 16, -1), (4, 32, 8), (4, 32, -1), (5, 16, 16), (5, 16, -1), (5, 32, 16), (5, 32, -1), (6, 16, 32),
    (6, 16, -1), (6, 32, 32), (6, 32, -1), (8, 16, 128), (8, 16, -1), (8, 32, 128), (8, 32, -1), (8, 0, 128),
]  # fmt: skip
"""Bits, group and centre of a head."""


class Head:
    """Numbers [V, H] uint8 in the strips of csrc/head.h, with steps and lowest values [V, H / group], or with group 0 a
    step per output [V, 1]."""

    def __init__(
        self, numbers: torch.Tensor, step: torch.Tensor, lowest: torch.Tensor | None, bits: int, group: int, centre: int
    ):
        self.bits, self.group, self.centre = bits, group, centre
        low_bits = bits - 4
        self.parts = {"data": _in_strips(numbers >> low_bits, 4)}
        if low_bits:
            self.parts["low"] = _in_strips(numbers & (1 << low_bits) - 1, low_bits)
        grid = step[..., None] if lowest is None else torch.stack([step, lowest], -1)
        padded = torch.nn.functional.pad(grid, (0, 0, 0, 0, 0, -len(grid) % STRIP))
        if group:
            self.parts["grid"] = padded.unflatten(0, (-1, STRIP)).permute(0, 2, 3, 1).to(torch.float16).contiguous()
        else:
            self.parts["scale"] = padded.flatten().float().contiguous()

    @property
    def struct(self) -> Any:
        addresses = {name: part.data_ptr() for name, part in self.parts.items()}
        return border.Head(bits=self.bits, group=self.group, centre=self.centre, **addresses)


class HeadEngine(Engine):
    """An engine of one layer without effect. `logits` takes states from 0 on as they are, but for their rounding."""

    def __init__(self, head: Any, vocabulary: int, hidden: int, states: torch.Tensor, library: ctypes.CDLL,
                 threads: int = 2):  # fmt: skip
        self.library, self.precision, self._kept, self._arena, self.handle = library, "int8", [], None, None
        # Embeddings of the other tokens are never read.
        embedding = torch.empty(vocabulary, hidden)
        embedding[: len(states)] = states
        zeros = torch.full((max(hidden, 64), 64 * -(-max(hidden, 64) // 64)), 128, dtype=torch.uint8)
        ones, large = torch.ones(max(hidden, 64)), torch.full((hidden,), 1e6)
        self._kept += [embedding, zeros, ones, large]

        def nothing(outputs: int) -> Any:
            matrix = border.Matrix(data=zeros.data_ptr(), scale=ones.data_ptr(), outputs=outputs)
            return border.Product(part=(matrix,), parts=1)

        norm, mlp = border.Norm(weight=ones.data_ptr()), border.Mlp(nothing(32), nothing(hidden))
        layer = border.Layer(
            nothing(48), nothing(hidden), ctypes.addressof(mlp), rope=-1, attention_norm=norm, mlp_norm=norm
        )
        self._kept.append(mlp)
        sizes = border.Sizes(
            layers=1, hidden=hidden, intermediate=16, heads=1, kv_heads=1, head_dim=16, vocabulary=vocabulary,
            positions=64, precision=2, threads=threads, epsilon=1e12, embedding_scale=1, softmax_scale=0.25,
            residual_scale=1, logit_scale=1, gated=1,
        )  # fmt: skip
        model = border.Model(
            sizes=sizes, layers=ctypes.addressof(layer), embedding=embedding.data_ptr(), head=head,
            final_norm=border.Norm(weight=large.data_ptr()),
        )  # fmt: skip
        made, message = ctypes.c_void_p(), border.message()
        code = library.solm_engine(ctypes.byref(model), ctypes.byref(made), message)
        assert not code, message.value
        self.handle, self.sizes = made.value, sizes
        self._rows: dict[int, tuple] = {}

    def logits(
        self, first: int, rows: int = 1, exact_largest: int = 0, exact_rows=None, adaptive_head=False, outputs=None
    ) -> torch.Tensor:
        """Logits [rows, outputs] of states from `first` on, in one step. exact_rows: [rows] bool."""
        if rows not in self._rows:
            caches = tuple(Cache(self, 16) for _ in range(rows))
            self._rows[rows] = (
                caches,
                np.zeros(rows, np.int64),
                np.zeros(rows, ROW_STATE),
                EngineCall(self, SparsityConfig(window=16)),
            )
        *given, call = self._rows[rows]
        tokens = torch.arange(first, first + rows)
        how = {"exact_largest": exact_largest, "exact_rows": exact_rows, "adaptive_head": adaptive_head}
        return torch.from_numpy(call.run(given[0], tokens, *given[1:], outputs=outputs, **how).logits[:, 0])


def random_head(form: tuple[int, int, int], vocabulary: int, hidden: int, seed: int = 0) -> tuple[Head, torch.Tensor]:
    """A head of this form, and its weights [V, H] in float64. Logits of states of variance 1 have one of about 9."""
    bits, group, centre = form
    draw = torch.Generator().manual_seed(seed)
    if not group:
        weight = torch.randn(vocabulary, hidden, generator=draw) * 3 / hidden**0.5
        scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        rounded = (weight / scale).round()
        return Head((rounded + 128).to(torch.uint8), scale, None, *form), rounded.double() * scale.double()
    numbers = torch.randint(0, 1 << bits, (vocabulary, hidden), generator=draw).to(torch.uint8)
    step = torch.rand(vocabulary, hidden // group, generator=draw) + 0.5
    step = (step * 10 / hidden**0.5 / (1 << bits)).half().float()
    lowest = None if centre >= 0 else (-(torch.rand(step.shape, generator=draw) + 0.5) * 5 / hidden**0.5).half().float()
    head = Head(numbers, step, lowest, bits, group, centre)
    step, least = (
        part.double().repeat_interleave(group, 1) for part in (step, -centre * step if lowest is None else lowest)
    )
    return head, numbers * step + least


def rounded_states(states: torch.Tensor) -> torch.Tensor:
    """States [N, H] float32 as the engine rounds them, in float64."""
    short = -states.shape[1] % GROUP
    groups = torch.nn.functional.pad(states, (0, short)).unflatten(1, (-1, GROUP))
    peak = groups.abs().amax(-1, keepdim=True)
    numbers = (groups * (127 / peak)).round().double() * (peak.double() / 127)
    return numbers.flatten(1)[:, : states.shape[1]]


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
