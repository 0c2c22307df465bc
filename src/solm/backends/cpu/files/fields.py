"""Reading a model's sizes from a file's metadata; one that is missing or makes no sense gets one clear line."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from solm.core.errors import DamagedFileError, damaged

_LARGEST = sys.float_info.max
_LONGEST_SHOWN = 60
"""Letters of a value in a message."""


@dataclass(frozen=True)
class Fields:
    """Named values of a file. names: what the file calls those that it has under other names. All that is not what it
    should be raises `DamagedFileError` with the file, the field and the value."""

    file: Path | str
    values: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)

    def name_of(self, name: str) -> str:
        """What the file calls a value."""
        return self.names.get(name, name)

    def damaged(self, name: str, reason: str) -> DamagedFileError:
        return damaged(self.file, self.name_of(name), reason)

    def get(self, name: str) -> Any:
        """The value as it is; None where the file has none."""
        return self.values.get(name)

    def integer(self, name: str, most: int, default: int | None = None) -> int:
        """A whole number from 1 to `most`."""
        value = self.get(name)
        value = default if value is None else value
        if type(value) is not int or not 1 <= value <= most:
            raise self._bad(name, value, f"a whole number from 1 to {most}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LARGEST:
            raise self._bad(name, value, "a number above 0")
        return float(value)

    def numbers(self, name: str, count: int) -> list[float]:
        """`count` finite numbers above 0."""
        values = self.get(name)
        if not isinstance(values, list | tuple) or len(values) != count:
            raise self._bad(name, values, f"a list of {count} numbers")
        for value in values:
            if type(value) not in (int, float) or not 0 < value <= _LARGEST:
                raise self._bad(name, value, "numbers above 0")
        return [float(value) for value in values]

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self._bad(name, value, "true or false")
        return value

    def tokens(self, name: str, vocabulary: int) -> tuple[int, ...]:
        """Token ids: one, a list of them, or none."""
        value = self.get(name)
        tokens = () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)
        if any(type(token) is not int or not 0 <= token < vocabulary for token in tokens):
            raise self._bad(name, value, f"token ids below {vocabulary}")
        return tokens

    def _bad(self, name: str, value: Any, wanted: str) -> DamagedFileError:
        if value is None:
            return self.damaged(name, "it is missing")
        return self.damaged(name, f"must be {wanted}, not {shown(value)}")


def shown(value: Any) -> str:
    """A value of a file as a message shows it: on one line, and not too long."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."
