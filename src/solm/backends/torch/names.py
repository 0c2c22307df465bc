"""What transformers should load for a model's name; weights of a GGUF file are dequantised for it once."""

import contextlib
import hashlib
import io
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.quantization_config import GgufConfig

from solm.backends.gguf_header import read_header
from solm.backends.names import folder_or_hub_id, gguf_of, made_folder, quiet
from solm.core.files import cache_folder, check_cache_folder


def locate(name: str) -> str:
    """What transformers should load for `name`: a folder or a hub id."""
    gguf = gguf_of(name)
    return folder_or_hub_id(name) if gguf is None else str(dequantised(gguf))


def dequantised(gguf: Path) -> Path:
    """The folder that holds `gguf` as float32 safetensors with its tokenizer, made on first use. Raises
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
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
