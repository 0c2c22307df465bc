"""API keys: secrets that clients send, each with a name, a floor and a priority that the operator gives it."""

import base64
import binascii
import hashlib
import hmac
import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from solm.core.errors import SolmError
from solm.serving.settings import Priority

_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
_NAMED = re.compile(f"({_NAME}):(.+)")
_LARGEST = 1 << 22
"""Bytes of a file of keys."""


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
        found = _NAMED.fullmatch(text)
        return cls(text) if found is None else cls(found[2], found[1])


class _Listed(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    name: Annotated[str, StringConstraints(pattern=f"^{_NAME}$")]
    secret: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    floor: float | str | None = None
    priority: Priority | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    keys: list[_Listed] = Field(min_length=1)


def read_keys(text: str) -> list[ApiKey]:
    """The keys in a list separated by commas."""
    return [ApiKey.parse(part.strip()) for part in text.split(",") if part.strip()]


def read_keys_file(path: Path) -> list[ApiKey]:
    """The keys of a file: TOML (``.toml``) or JSON, with a list ``keys`` of name, secret, and where wanted floor and
    priority. Raises `SolmError` for a file that cannot be read, without any value of it."""
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise SolmError(f"{path} exceeds {_LARGEST} bytes")
        content = tomllib.loads(data.decode()) if path.suffix == ".toml" else json.loads(data)
        found = _File.model_validate(content)
    except OSError as error:
        raise SolmError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False, include_url=False)[0]
        # Not the value: it may be a secret.
        place = ".".join(str(part) for part in first["loc"] if part not in ("float", "str"))
        raise SolmError(f"{path}: {place or 'it'}: {first['msg']}") from None
    except (ValueError, RecursionError):
        kind = "TOML" if path.suffix == ".toml" else "JSON"
        raise SolmError(f"{path} is not {kind}; a file of keys is TOML (.toml) or JSON") from None
    return [ApiKey(key.secret, key.name, key.floor, key.priority) for key in found.keys]


def check_keys(keys: Sequence[ApiKey]) -> None:
    """Raise `SolmError` where two keys have one name, or one secret, of which only one key's floor would apply."""
    names = [key.name for key in keys if key.name]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SolmError(f"two keys are named {twice!r}")
    known: dict[bytes, ApiKey] = {}
    for key in keys:
        other = known.setdefault(_digest(key.secret), key)
        if other != key:
            raise SolmError(f"the keys named {other.name!r} and {key.name!r} have the same secret")


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


class KeyRing:
    """The keys that are valid now. They may be replaced while requests are answered, from any thread."""

    def __init__(self, keys: Sequence[ApiKey] = ()):
        self.replace(keys)

    def replace(self, keys: Sequence[ApiKey]) -> None:
        """From now on these keys are valid, and no others; without any, none is required."""
        digests = [(_digest(key.secret), key) for key in keys]
        self._known = digests, {key.name: key for key in keys if key.name}

    def __len__(self) -> int:
        return len(self._known[0])

    def of_secret(self, secret: str) -> ApiKey | None:
        """The key whose secret this is; None where there is none."""
        digest = _digest(secret)
        # All keys are compared, so that the time taken does not reveal which one matched.
        matches = [key for known, key in self._known[0] if hmac.compare_digest(digest, known)]
        return matches[0] if matches else None

    def of_header(self, header: bytes) -> str | None:
        """The name of the key in an Authorization header, as a bearer token or as the password of HTTP Basic; None for
        no valid one. Where no key is required, any header is valid."""
        if not self:
            return ""
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
        found = self.of_secret(secret.strip())
        return None if found is None else found.name

    def named(self, name: str) -> ApiKey:
        """The key of this name; for others one without a floor and a priority."""
        return self._known[1].get(name) or ApiKey("")
