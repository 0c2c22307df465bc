"""API keys: secrets that clients send, each with a name, a floor and a priority that the operator gives it."""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from solm.core.errors import SolmError
from solm.serving.settings import Priority

_NAMED = re.compile("([A-Za-z0-9][A-Za-z0-9_.-]{0,63}):(.+)")


@dataclass(frozen=True)
class ApiKey:
    """name: empty for a key without one. floor: below which the governor lowers no request under the key, in any form
    of a budget. priority: of its requests that name none, and the highest that they may name; None: normal, any."""

    secret: str = field(repr=False)
    name: str = ""
    floor: float | str | None = None
    priority: Priority | None = None

    @classmethod
    def parse(cls, text: str) -> "ApiKey":
        """The key in ``NAME:SECRET`` or ``SECRET``."""
        named = _NAMED.fullmatch(text)
        return cls(text) if named is None else cls(named[2], named[1])


def read_keys(text: str) -> list[ApiKey]:
    """The keys in a list separated by commas."""
    return [ApiKey.parse(part.strip()) for part in text.split(",") if part.strip()]


class KeyRing:
    """The keys that are valid; without any, none is required. Raises `SolmError` where two keys have one name, or one
    secret, of which only one key's floor would apply."""

    def __init__(self, keys: Sequence[ApiKey] = ()):
        self._digests = [(hashlib.sha256(key.secret.encode()).digest(), key) for key in keys]
        names = [key.name for key in keys if key.name]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise SolmError(f"API keys: two keys are named {twice!r}")
        by_secret: dict[bytes, ApiKey] = {}
        for digest, key in self._digests:
            other = by_secret.setdefault(digest, key)
            if other != key:
                raise SolmError(f"API keys: the keys named {other.name!r} and {key.name!r} have the same secret")

    def of_header(self, header: bytes) -> ApiKey | None:
        """The key in an Authorization header, as a bearer token or as the password of HTTP Basic; None for no valid
        one. Where no key is required, any header is valid."""
        if not self._digests:
            return ApiKey("")
        scheme, _, given = header.partition(b" ")
        if scheme.lower() == b"basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                return None
        elif scheme.lower() != b"bearer":
            return None
        try:
            secret = given.decode()
        except UnicodeDecodeError:  # some clients send Latin-1
            secret = given.decode("latin-1")
        digest = hashlib.sha256(secret.strip().encode()).digest()
        # All keys are compared, so that the time taken does not reveal which one matched.
        matches = [key for valid, key in self._digests if hmac.compare_digest(digest, valid)]
        return matches[0] if matches else None
