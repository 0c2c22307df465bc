"""Loading a transformers model, its tokenizer, or its configuration alone."""

import contextlib
import hashlib
import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFWriter
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils.quantization_config import GgufConfig

from solm.backends.gguf_header import ArrayInfo, GgufHeader, read_header
from solm.backends.machine import keep_freed_memory
from solm.backends.names import dtype_name, folder_or_hub_id, gguf_of, made_folder, not_loadable, quiet
from solm.backends.tokenizer import model_tokenizer
from solm.core.errors import SolmError, UnsupportedModelError
from solm.core.files import cache_folder, check_cache_folder


def resolve_dtype(asked: str | torch.dtype) -> torch.dtype:
    """The dtype `asked` for. ``auto``: bfloat16 on an accelerator or a CPU with native bfloat16, else float32."""
    name = dtype_name(asked)
    if name != "auto":
        return getattr(torch, name)
    native = torch.accelerator.is_available() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def check_device(device: str | torch.device) -> torch.device:
    """The device called `device`; raises `SolmError` for one that is unknown or not there."""
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except Exception as error:  # every kind of device has errors of its own
        reason = str(error).strip().split("\n")[0]
        raise SolmError(f"device {str(device)!r} cannot be used here: {reason}") from error
    return found


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Inside, transformers says nothing, and whatever it raises becomes one `SolmError`: of sizes that make no sense it
    raises anything."""
    try:
        with quiet():
            yield
    except SolmError:
        raise
    except Exception as error:
        raise not_loadable(name, error) from error


def load_base(
    name: str,
    dtype: str | torch.dtype = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    tokenizer: Any = None,
) -> tuple[PreTrainedModel, Any]:
    """The frozen base model and its tokenizer, by default the one that comes with it, which is read first.

    GGUF weights are dequantised once and kept as safetensors under the cache folder (SOLM_CACHE, by default
    ``~/.cache/solm``), because parsing a GGUF takes ten times as long as reading them back. revision: branch, tag or
    commit of a hub id.

    Raises:
        SolmError: nothing of that name here or on the hub (the message says what was tried), no tokenizer, a device
            that is not there.
    """
    if device is None:
        device = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    target = check_device(device)
    tokenizer = tokenizer or model_tokenizer(name, trust_remote_code, revision)
    with _loading(name):
        model = AutoModelForCausalLM.from_pretrained(
            locate(name), dtype=resolve_dtype(dtype), trust_remote_code=trust_remote_code, revision=revision
        )
    model.requires_grad_(False)
    if target.type == "cpu":
        keep_freed_memory()
    model.to(target)  # type: ignore[arg-type]
    return model.eval(), tokenizer


def skeleton(name: str, trust_remote_code: bool = False, revision: str | None = None) -> PreTrainedModel:
    """The model's structure on the meta device, from its configuration alone. Raises as `base_config` does."""
    config = base_config(name, trust_remote_code, revision)
    with _loading(name), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def base_config(name: str, trust_remote_code: bool = False, revision: str | None = None) -> PretrainedConfig:
    """The model's configuration; of a GGUF file, what its header says.

    Raises `SolmError` where there is no such model, `DamagedFileError` for a damaged GGUF file.
    """
    gguf = gguf_of(name)
    with _loading(name):
        if gguf is not None:
            return _header_config(read_header(gguf))
        return AutoConfig.from_pretrained(
            locate(name), trust_remote_code=trust_remote_code, revision=revision or "main"
        )


def _header_config(header: GgufHeader) -> PretrainedConfig:
    """The configuration that transformers reads from the file, through a copy without vocabulary and weights: its own
    reader takes half a minute for a vocabulary of 150,000 tokens."""
    with tempfile.TemporaryDirectory() as folder:
        writer = GGUFWriter(Path(folder) / "header.gguf", header.family)
        add: dict[type, Callable[[str, Any], None]] = {
            bool: writer.add_bool, int: writer.add_int64, float: writer.add_float64, str: writer.add_string,
            list: writer.add_array,
        }  # fmt: skip
        for key, value in header.metadata.items():
            written = key in ("general.architecture", "general.alignment")  # by the writer itself
            if type(value) in add and value != [] and not written:
                add[type(value)](key, value)
        tokens = header.metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, ArrayInfo):
            writer.add_array("tokenizer.ggml.tokens", [""])
        for tensor in header.tensors:
            writer.add_tensor(tensor.name, np.zeros(1, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        config = AutoConfig.from_pretrained(folder, gguf_file="header.gguf")
    if header.size("expert_count") and not getattr(config, "num_experts_per_tok", None):
        raise UnsupportedModelError("transformers would read this mixture of experts as a dense model")
    if header.vocabulary is not None:
        config.vocab_size = header.vocabulary
    return config


def locate(name: str) -> str:
    """What transformers should load for `name`: a folder or a hub id."""
    gguf = gguf_of(name)
    return folder_or_hub_id(name) if gguf is None else str(dequantised(gguf))


def dequantised(gguf: Path) -> Path:
    """The folder that holds `gguf` as float32 safetensors, made on first use. Raises
    `CacheFolderError` where it cannot be kept."""
    read_header(gguf)  # a damaged file gets one line here, and anything inside transformers
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    folder = cache_folder() / f"{gguf.stem}-{digest}"
    if not folder.is_dir():
        check_cache_folder()
        made_folder(folder, lambda work: _dequantise(gguf, work))
    return folder


def _dequantise(gguf: Path, folder: Path) -> None:
    # The conversion's progress bar is tqdm's own, which no setting of transformers turns off.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        # transformers refuses to save a model that remembers being quantised.
        model.config.__dict__.pop("quantization_config", None)
        vars(model)["hf_quantizer"] = None
        model.save_pretrained(folder)
