"""The cpu backend: a model's prompts on torch, its steps on the compiled engine."""

import torch

from solm.backends.cpu.engine import Engine
from solm.backends.cpu.engine import check_precision as check_precision
from solm.backends.cpu.session import CpuSession
from solm.backends.torch.backend import TorchBackend
from solm.core.sparsity import SparsityConfig


class CpuBackend:
    """See `solm.backends.session.Backend`. Steps read and compute only what an action keeps.

    reader: the model, which reads prompts and whose weights the engine copies; it is given back by `detach`. precision,
    threads, kv_cache_dtype: as for `Engine`. Raises `UnsupportedModelError` for a model or rules that the engine cannot
    carry out, `SolmError` without a compiler or memory.
    """

    def __init__(
        self,
        reader: TorchBackend,
        sparsity: SparsityConfig,
        precision: str = "bfloat16",
        threads: int | None = None,
        kv_cache_dtype: str = "auto",
    ):
        self.reader, self.model = reader, reader.model
        self.shapes, self.capability = reader.shapes, reader.capability
        self.engine = Engine(reader.model, sparsity, precision, threads, kv_cache_dtype)

    @property
    def name(self) -> str:
        """Such as ``cpu int8``."""
        return self.engine.name

    @property
    def device(self) -> torch.device:
        return self.reader.device

    @property
    def context(self) -> int | None:
        return self.reader.context

    def session(self, sparsity: SparsityConfig, capacity: int = 0) -> CpuSession:
        """As `Backend.session`."""
        return CpuSession(self.reader, self.engine, sparsity, capacity)

    def detach(self) -> None:
        """Give the model back exactly as it was."""
        self.reader.detach()
