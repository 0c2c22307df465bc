"""API keys: secrets that clients send, each with a name, a floor and a priority that the operator gives it."""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from solm.core.errors import SolmError
from solm.serving.settings import Priority, ServeSettings

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


def keys_of(texts: Sequence[str], settings: ServeSettings) -> list[ApiKey]:
    """The keys in `texts`, with the floors and priorities that settings give those that have a name.

    Raises `SolmError`, whose message holds no secret, where two keys have one name, or one secret, of which only one
    key's floor would apply, and where settings name a key that is not there.
    """
    keys = [ApiKey.parse(text) for text in texts]
    names = [key.name for key in keys if key.name]
    for one, other in combinations(keys, 2):
        if one.name and one.name == other.name:
            raise SolmError(f"API keys: two keys are named {one.name!r}")
        if one.secret == other.secret and one != other:
            raise SolmError(f"API keys: the keys named {one.name!r} and {other.name!r} have the same secret")
    for setting in ("key_floors", "key_priorities"):
        for name in getattr(settings, setting):
            if name not in names:
                choice = f"choose one of {', '.join(names)}" if names else "no API key has a name, as in NAME:SECRET"
                raise SolmError(f"--set {setting}.{name}: unknown name {name!r}; {choice}")
    floors, priorities = settings.key_floors, settings.key_priorities
    return [replace(key, floor=floors.get(key.name), priority=priorities.get(key.name)) for key in keys]


def find_key(keys: Sequence[ApiKey], header: bytes) -> ApiKey | None:
    """The key in an Authorization header, as a bearer token or as the password of HTTP Basic; None for no valid one.
    Where no key is required, any header is valid."""
    if not keys:
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
    digest = _digest(secret.strip())
    # All keys are compared, so that the time taken does not reveal which one matched.
    matches = [key for key in keys if hmac.compare_digest(digest, _digest(key.secret))]
    return matches[0] if matches else None


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
