"""A transformers model in memory as a source of weights."""

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType as TensorType
from transformers import PreTrainedModel

from solm.backends.cpu.files.config_spec import from_config
from solm.backends.cpu.files.source import check_tensors, ignored_of, meant, name_in
from solm.backends.cpu.files.tensors import Tensor
from solm.core.errors import UnsupportedModelError

_TYPES = {torch.float32: TensorType.F32, torch.float16: TensorType.F16, torch.bfloat16: TensorType.BF16}


class LoadedModel:
    """The parameters of `model`, which must stay as they are while the source is used. Those in float64 are read in
    float32.

    Raises `UnsupportedModelError` for weights that are quantised or not on the CPU and for a model that is not
    described here, `DamagedFileError` for parameters that are not those of its configuration.
    """

    def __init__(self, model: PreTrainedModel):
        self.identity: str | None = None
        self.times: list[int] = []
        config = model.config.get_text_config(decoder=True)
        self.spec = from_config(
            config.to_dict(), "the model's configuration", str(config.name_or_path or config.model_type)
        )
        self._parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
        for name, weight in self._parameters.items():
            if type(weight) is not torch.Tensor or not weight.is_floating_point():
                raise UnsupportedModelError(f"{name} is quantised already; weights must be floats")
            if weight.device.type != "cpu":
                raise UnsupportedModelError(f"{name} is on {weight.device}; weights must be on the CPU")
        listed = {
            name: (_TYPES.get(weight.dtype, TensorType.F32), tuple(weight.shape))
            for name, weight in self._parameters.items()
        }
        check_tensors(self.spec, listed, gguf=False, ignored=ignored_of(self.spec, listed))

    def tensor(self, name: str, layer: int | None = None) -> Tensor:
        theirs = name_in(self.spec, name, layer, gguf=False)
        weight = self._parameters[theirs]
        weight = (weight if weight.dtype in _TYPES else weight.float()).contiguous()
        data = weight.flatten().view(torch.uint8).numpy()
        assert data.dtype == np.uint8
        stored = Tensor(theirs, _TYPES[weight.dtype], tuple(weight.shape), data)
        return meant(self.spec, name, layer, stored, gguf=False)

    def release(self, tensor: Tensor) -> None:
        pass
