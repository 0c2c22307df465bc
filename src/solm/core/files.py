"""Writing files so that nothing half-written is ever seen, and reading them so that damage gets one clear error."""

import fcntl
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from solm.core.errors import CacheFolderError, DamagedFileError, RunMismatchError, SolmError

if TYPE_CHECKING:
    import torch

Model = TypeVar("Model", bound=BaseModel)
CURE = "set SOLM_CACHE to another folder"
KEPT = "finished parts are kept. The same command continues"
_NUMBERS = re.compile(r"\[\n\s+((?:-?[0-9][0-9.eE+-]*,\n\s+)*-?[0-9][0-9.eE+-]*)\n\s+\]")
"""A list of numbers in indented JSON. Strings hold no line ends."""


@contextmanager
def locked(folder: Path, what: str, name: str = ".lock") -> Iterator[None]:
    """Hold `folder`, made if need be, for one process, or what the lock `name` in it stands for; the system lets go of
    it however the process ends.

    Raises `RunMismatchError` where another process holds it (`what`: is doing what there), `SolmError` where it cannot
    be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / name).open("w")
    except OSError as error:
        raise SolmError(f"cannot use {folder} as a run folder: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunMismatchError(f"another process is {what} in {folder}") from None
        yield


@contextmanager
def resumable(result: Path | None) -> Iterator[Path | None]:
    """The file beside `result` that keeps finished parts of a command, held for one process; None for None,
    and for a device or a pipe, beside which nothing is kept.

    Write the result inside the block: where the block ends without an error, what was kept goes. Raises as `locked`
    does; a `KeyboardInterrupt` says so where something is kept.
    """
    if result is None or is_stream(result):
        yield None
        return
    result = place_of(result)
    with locked(result.parent, f"working on {result.name}", f".{result.name}.lock"):
        partial = result.with_name(result.name + ".partial")
        try:
            yield partial
        except KeyboardInterrupt:
            if partial.exists():
                raise KeyboardInterrupt(KEPT) from None
            raise
        partial.unlink(missing_ok=True)


def is_stream(path: Path) -> bool:
    """Whether `path` is there and no regular file, such as a device or a pipe."""
    return path.exists() and not path.is_file()


def place_of(path: Path) -> Path:
    """Where the file lies that `path` names: the end of its symlinks, which need not exist."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def write_bytes(path: Path, *parts: bytes | memoryview) -> None:
    """Write `parts`, one after another, as `replacing` does. Devices and pipes are written to as they are.

    Raises `SolmError` where the disk is full or the folder cannot be written.
    """
    if is_stream(path):
        try:
            path.write_bytes(b"".join(parts))
        except OSError as error:
            raise SolmError(f"cannot write {path}: {error.strerror or error}") from error
        return
    with replacing(path) as file:
        file.writelines(parts)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new temporary file beside `path`, to be written; after the block it is synced, and takes the place of `path`.
    The old file survives any failure. Symlinks stay. Raises as `write_bytes` does."""
    path = place_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise SolmError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        raise SolmError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        Path(name).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write `content` indented, but for lists of numbers, which take a line each."""
    text = json.dumps(content, indent=2)
    write_text(path, _NUMBERS.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text) + "\n")


def write_tensors(path: Path, tensors: "dict[str, torch.Tensor]", metadata: dict[str, str] | None = None) -> None:
    from safetensors.torch import save

    write_bytes(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata))


def read_model(path: Path, model: type[Model]) -> Model:
    """The JSON file at `path` as a `model`; raises `DamagedFileError` for anything that is not one."""
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise SolmError(f"no file {path}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DamagedFileError(f"{path} is damaged or of another version: {where or 'file'}: {first['msg']}") from error
    except (SolmError, OSError) as error:
        raise DamagedFileError(f"{path} is damaged or of another version: {error}") from error


def read_json(path: Path) -> Any:
    """The content of the JSON file at `path`; raises `SolmError` where it cannot be read, `DamagedFileError` for any
    other content."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise SolmError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError):
        raise DamagedFileError(f"{path} is damaged: it is not JSON") from None


def read_object(path: Path) -> dict[str, Any]:
    """The same where it must be an object."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise DamagedFileError(f"{path} is damaged: it holds no JSON object")
    return found


def read_tensors(path: Path) -> "dict[str, torch.Tensor]":
    """The tensors of a safetensors file; raises `DamagedFileError` for anything that is not one."""
    from safetensors.torch import load_file

    return _loaded(path, load_file)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The same as arrays. Raises `DamagedFileError` for dtypes that NumPy lacks, too."""
    from safetensors.numpy import load_file

    return _loaded(path, load_file)


def _loaded(path: Path, load: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    from safetensors import SafetensorError

    try:
        return load(path)
    except FileNotFoundError:
        raise SolmError(f"no file {path}") from None
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise DamagedFileError(f"{path} is damaged: {error}") from error


class Parts:
    """Finished parts of a long job in a file, JSON values by name, so that an interrupted job goes on where it stopped.

    key: what they are parts of; a file with another key is not used. path: None keeps nothing beyond the
    process. Whoever writes the result removes the file (`resumable`).
    """

    def __init__(self, path: Path | None, key: Any):
        self.path, self.key = path, json.loads(json.dumps(key))
        self._found: dict[str, Any] = {}
        if path is None or not path.exists():
            return
        with suppress(KeyError, TypeError, ValueError):  # half-written or foreign: its parts are made again
            content = json.loads(path.read_text())
            self._found = dict(content["parts"]) if content["key"] == self.key else {}

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """What is kept under `name`; where nothing is, what `make` returns, which is kept then."""
        if name not in self._found:
            self._found[name] = make()
            if self.path is not None:
                write_json(self.path, {"key": self.key, "parts": self._found})
        return self._found[name]


def cache_folder() -> Path:
    """Where things are kept that can be made again: the built engine, repacked weights, converted models. It is the
    folder that SOLM_CACHE names; otherwise ``solm`` in the user's cache folder (XDG_CACHE_HOME, by default
    ``~/.cache``)."""
    named = os.environ.get("SOLM_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "solm"


def check_cache_folder() -> None:
    """Make the cache folder if need be. Raises `CacheFolderError` where it cannot be written."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CacheFolderError(f"the cache folder {folder} cannot be written: {error.strerror}; {CURE}") from error
