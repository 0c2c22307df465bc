"""A base model split across the processes of `torch.distributed`: each keeps a part of every decoder layer (FSDP2)."""

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from solm.backends.torch.families import decoder_layers
from solm.core.errors import SolmError


def check_processes() -> None:
    """Raises `SolmError` outside a process group."""
    if not distributed.is_initialized():
        raise SolmError("a model can only be split across several processes; start them with torchrun")


def shard_layers(model: PreTrainedModel, device: torch.device) -> None:
    """Split the decoder layers of `model` across the processes, in place; a layer is put together while it computes.

    What lies outside the layers, embeddings and head, stays whole in every process and moves to `device`. From then on
    all processes must run the model together: as many passes, whatever is read in each.
    """
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh)
    model.to(device)  # type: ignore[arg-type]
