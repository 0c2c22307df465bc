"""Symmetric uniform activation quantisation, simulated: values are rounded to the grid and scaled back."""

import torch


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
