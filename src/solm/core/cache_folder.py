"""Where things are kept that can be made again: the built engine, repacked weights, converted models."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder that SOLM_CACHE names; otherwise ``solm`` in the user's cache folder (XDG_CACHE_HOME, by default
    ``~/.cache``)."""
    named = os.environ.get("SOLM_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "solm"
