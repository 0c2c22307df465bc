"""Finished parts of a long job in a file, so that an interrupted job goes on where it stopped."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from solm.core.files import write_json


class Parts:
    """JSON values by name. `key` says what they are parts of: a file with another key is not used.

    path: None keeps nothing beyond the process. Whoever writes the result removes the file (see `files.resumable`).
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
        """What is known under `name`; where nothing is, what `make` returns, which is kept."""
        if name not in self._found:
            self._found[name] = make()
            if self.path is not None:
                write_json(self.path, {"key": self.key, "parts": self._found})
        return self._found[name]
