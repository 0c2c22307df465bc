"""The product of a few rows with a weight, reading only the weight's rows of channels that are not zero.

An action keeps single channels, so it is single rows of an input-major weight that are skipped. Skipping blocks of
channels would suit a GPU better, but costs far more quality at the same share, even with the channels sorted by how
much they matter on average: which ones are large changes with the token. A row of outputs is contiguous, and long
enough to be read well by itself. That loads can be masked row by row, with no list of channels made first, is how TEAL
does it (arXiv 2408.14690).
"""

# Kernel arguments are pointers and numbers, which Triton types by itself.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

import torch
import triton
import triton.language as tl

from solm.backends.torch.triton import MOST_ROWS, interpreted

_ROWS, _CHANNELS, _OUTPUTS = 16, 64, 128  # of a tile; tensor cores multiply 16 rows at least
_PROGRAMS = 512  # wanted at least, by splitting the channels


@triton.jit
def _multiply(
    x, weight, parts, rows, channels, outputs, share,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """parts [splits, N, outputs] float32: what `share` channels of x [N, channels] contribute each."""
    split = tl.program_id(1)
    row, output = tl.arange(0, ROWS), tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    last = tl.minimum((split + 1) * share, channels)
    for first in range(split * share, last, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        here = (row < rows)[:, None] & (channel < last)[None, :]
        values = tl.load(x + row[:, None] * channels + channel[None, :], mask=here, other=0.0)
        kept = tl.max((values != 0.0).to(tl.int32), 0) > 0
        at = channel.to(tl.int64)[:, None] * outputs + output[None, :]
        tile = tl.load(weight + at, mask=kept[:, None] & (output < outputs)[None, :], other=0.0)
        total += tl.dot(values.to(OPERAND), tile.to(OPERAND), input_precision="ieee")
    at = (split * rows + row[:, None]) * outputs + output[None, :]
    tl.store(parts + at, total, mask=(row < rows)[:, None] & (output < outputs)[None, :])


def channel_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x @ weight + bias for x [..., channels] of at most `MOST_ROWS` rows: [..., outputs], sums in float32.

    weight: [channels, outputs], contiguous, of x's dtype; rows of it whose channel is zero in every row of x are not
    read. bias: [outputs].
    """
    channels, outputs = weight.shape
    rows = x.numel() // channels
    assert rows <= MOST_ROWS, f"{rows} rows, at most {MOST_ROWS}"
    assert weight.is_contiguous(), f"strides {weight.stride()} of a weight {list(weight.shape)}"
    wanted = triton.cdiv(_PROGRAMS, triton.cdiv(outputs, _OUTPUTS))
    share = triton.cdiv(triton.cdiv(channels, wanted), _CHANNELS) * _CHANNELS
    splits = triton.cdiv(channels, share)
    parts = x.new_empty(splits, rows, outputs, dtype=torch.float32)
    # See page_attention: the interpreter cannot multiply bfloat16.
    operand = tl.float32 if interpreted() else getattr(tl, str(x.dtype).removeprefix("torch."))
    _multiply[(triton.cdiv(outputs, _OUTPUTS), splits)](
        x.contiguous(), weight, parts, rows, channels, outputs, share,
        ROWS=_ROWS, CHANNELS=_CHANNELS, OUTPUTS=_OUTPUTS, OPERAND=operand,
    )  # fmt: skip
    total = parts[0] if splits == 1 else parts.sum(0)
    if bias is not None:
        total = total + bias
    return total.to(x.dtype).reshape(*x.shape[:-1], outputs)
