"""API keys: secrets that clients send, each with a name by which the operator sets its floor."""

import re
from dataclasses import dataclass

from solm.core.errors import SolmError

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,63}):(.+)")


@dataclass(frozen=True)
class ApiKey:
    """name: empty for a key without one."""

    secret: str
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> "ApiKey":
        """The key in ``NAME:SECRET`` or ``SECRET``."""
        found = _NAMED.fullmatch(text)
        return cls(text) if found is None else cls(found[2], found[1])


def read_keys(text: str) -> list[ApiKey]:
    """The keys in a list separated by commas; raises `SolmError` where two have one name."""
    keys = [ApiKey.parse(part.strip()) for part in text.split(",") if part.strip()]
    names = [key.name for key in keys if key.name]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SolmError(f"SOLM_API_KEYS: two keys are named {twice!r}")
    return keys
