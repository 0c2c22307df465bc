"""What was made for the last few keys."""

from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class Recent(Generic[_Key, _Value]):
    """Values of at most `most` keys: those that were made last. Threads may share one; two that ask for a new key at
    once may both make its value."""

    def __init__(self, most: int):
        self.most = most
        self._values: dict[_Key, _Value] = {}
        self._lock = Lock()

    def get(self, key: _Key, make: Callable[[], _Value]) -> _Value:
        """What is known under `key`, else what `make` returns, which is kept."""
        with self._lock:
            if key in self._values:
                return self._values[key]
        made = make()
        with self._lock:
            self._values[key] = made
            while len(self._values) > self.most:
                self._values.pop(next(iter(self._values)))
        return made
