"""Where things are kept that can be made again: the built engine, repacked weights, converted models."""

import os
import tempfile
from pathlib import Path

from solm.core.errors import CacheFolderError

CURE = "set SOLM_CACHE to another folder"


def cache_folder() -> Path:
    """The folder that SOLM_CACHE names; otherwise ``solm`` in the user's cache folder (XDG_CACHE_HOME, by default
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
