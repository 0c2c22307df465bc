"""Training on several processes, started by ``torchrun`` or ``accelerate launch``; one process needs none of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed

from solm.core.errors import SolmError


@dataclass(frozen=True)
class Ranks:
    """The number of this process, how many there are, and their exchanges. All processes must call every method in the
    same order."""

    rank: int = 0
    world: int = 1
    lockstep: bool = False
    """Whether the base model is split over the processes, so that all must run every pass together."""

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's part of `count` texts or rows; raises `SolmError` unless all parts can be equal."""
        if count % self.world:
            raise SolmError(f"{count} texts per update cannot be shared evenly by {self.world} processes")
        each = count // self.world
        return slice(self.rank * each, (self.rank + 1) * each)

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """The parts of all processes, one after the other along the first dimension; their shapes are equal."""
        if self.world == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.world)]
        distributed.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    def add_up(self, tensors: list[torch.Tensor]) -> None:
        """Make every tensor the sum over all processes, in one exchange."""
        if self.world == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process."""
        if self.world == 1:
            return flag
        said = torch.tensor([float(flag)], device=_device())
        distributed.all_reduce(said)
        return bool(said.item())

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.world > 1:
            distributed.barrier()


@contextmanager
def ranks(lockstep: bool = False) -> Iterator[Ranks]:
    """The processes that this one was started with; nccl where there are GPUs, gloo elsewhere."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Ranks(distributed.get_rank(), world, lockstep)
    finally:
        distributed.destroy_process_group()


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
