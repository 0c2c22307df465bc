"""Exact top-k selection with another k in every row, and rounding to another number of bits in every row."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch

_INDEX_BITS = 16
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_WORTH_A_THREAD = 1 << 17  # keys; below, handing over costs more than sorting


def _sorted(keys: torch.Tensor) -> torch.Tensor:
    """`keys` (float32 or int32) ascending along the last dimension.

    On the CPU numpy sorts: its AVX-512/AVX2 sort is 10 to 17 times faster here than torch's.
    """
    if keys.device.type != "cpu":
        return keys.sort(dim=-1).values
    ordered = keys.contiguous().numpy().copy()
    rows = ordered.reshape(-1, ordered.shape[-1])
    if rows.size < _WORTH_A_THREAD:
        rows.sort(axis=-1)
    else:
        list(_threads().map(lambda part: part.sort(axis=-1), np.array_split(rows, torch.get_num_threads())))
    return torch.from_numpy(ordered)


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="solm-sort")


def largest(scores: torch.Tensor, count: torch.Tensor, keep_ties: bool = False) -> torch.Tensor:
    """Mask of the `count` largest scores of every row.

    Args:
        scores: [..., D] floating point, no NaN; for 16-bit types non-negative and D ≤ 65,536.
        count: [..., 1] int64 in [0, D], broadcastable over the leading dimensions.
        keep_ties: also keep every score equal to the smallest one kept; otherwise exactly `count` are kept, and of
            equal scores those with the lower index.

    Returns:
        [..., D] bool.
    """
    size = scores.shape[-1]
    if scores.dtype in (torch.bfloat16, torch.float16) and not keep_ties:
        # Equal values are common in 16 bits. Non-negative floats order like the integers of their bits; those in the
        # high half of a key and the index in the low half make every key unique.
        bits = scores.contiguous().view(torch.int16)
        keys = torch.add(_falling(size, scores.device), bits, alpha=1 << _INDEX_BITS)
        return keys >= _threshold(keys, count, torch.iinfo(torch.int32).max)
    keys = scores.float()
    threshold = _threshold(keys, count, torch.inf)
    if keep_ties:
        return keys >= threshold
    above, equal = keys > threshold, keys == threshold
    missing = count - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= missing))


def _threshold(keys: torch.Tensor, count: torch.Tensor, none: float) -> torch.Tensor:
    """The count-th largest key of every row [..., 1]; `none` where count is 0."""
    size = keys.shape[-1]
    index = (size - count).clamp(max=size - 1).expand(*keys.shape[:-1], 1)
    return torch.where(count > 0, _sorted(keys).gather(-1, index), none)


@cache
def _falling(size: int, device: torch.device) -> torch.Tensor:
    """[size] int32, from the highest index that fits into the low half of a key down."""
    highest = (1 << _INDEX_BITS) - 1
    return torch.arange(highest, highest - size, -1, device=device, dtype=torch.int32)


def keep_channels(x: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """`x` [..., D] with all but the `count` [..., 1] channels of largest |x| set to zero.

    A row whose count is D comes back unchanged bit for bit.
    """
    return keep_where(x, largest(x.abs(), count))


def keep_where(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """`x` [..., D] set to zero where `keep` [..., D] is False.

    Zeroing is a bitwise and with all ones or none: `where` and `masked_fill` take a branch per element on the CPU,
    which an irregular mask makes 25 times slower.
    """
    mask = keep.view(torch.int8).neg().to(_INTEGERS[x.element_size()])
    return (x.contiguous().view(mask.dtype) & mask).view(x.dtype)


def fake_quantize(x: torch.Tensor, bits: torch.Tensor, group: int | None = None) -> torch.Tensor:
    """Round x [..., D] to `bits` [..., 1] bits per value (int64; 16 is the identity, bit for bit).

    absmax scale per token, or per `group` consecutive channels (the last group may be shorter),
    qmax = 2^(bits-1) - 1, round half to even. Computed in float32, returned in x's dtype.
    """
    size = x.shape[-1]
    values = x.float()
    if group is not None and group < size:
        whole = values if size % group == 0 else torch.nn.functional.pad(values, (0, -size % group))
        values = whole.unflatten(-1, (-1, group))
        level = bits[..., None]
    else:
        level = bits
    qmax = (1 << (level - 1)) - 1
    scale = values.abs().amax(-1, keepdim=True) / qmax
    rounded = (values / scale.clamp(min=torch.finfo(torch.float32).tiny)).round_().mul_(scale)
    if rounded.dim() > x.dim():
        rounded = rounded.flatten(-2)[..., :size]
    return torch.where(bits >= 16, x, rounded.to(x.dtype))
