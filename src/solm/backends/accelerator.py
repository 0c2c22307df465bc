"""Whether this machine has an accelerator, found without torch where there is none."""

import sys
from pathlib import Path

_DEVICES = ("nvidia*", "kfd", "dxg", "dri/render*", "accel*", "davinci*", "habanalabs*", "neuron*")
"""What kernel drivers of accelerators make in /dev, on Linux."""


def accelerator_available(devices: Path = Path("/dev")) -> bool:
    """Whether torch has an accelerator. It is only asked where the machine may have one."""
    if sys.platform == "linux" and not any(any(devices.glob(pattern)) for pattern in _DEVICES):
        return False
    import torch

    return bool(torch.accelerator.is_available())
