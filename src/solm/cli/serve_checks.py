"""What `solm serve` is given, checked before a model is loaded."""

import errno
import os
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from solm.cli import checks
from solm.core.errors import SolmError

if TYPE_CHECKING:
    from solm.serving.keys import ApiKey

_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*")
_LONGEST_SOCKET = 107
"""Bytes of a Unix socket's path, of Linux."""
_LARGEST = 1 << 20
"""Bytes of a chat template."""
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
"""Names by which templates ask for a model's tokens."""


def api_keys(given: list[str] | None, floors: list[str] | None, priorities: list[str] | None) -> "list[ApiKey]":
    """The keys of SOLM_API_KEYS and --api-key, with the floors of --key-floor and the priorities of --key-priority.
    Messages of errors hold no secret."""
    from solm.serving.keys import ApiKey, check_keys, read_keys
    from solm.serving.settings import PRIORITIES

    if any(not text.strip() for text in given or []):
        raise SolmError("--api-key: it is empty")
    keys = [*read_keys(os.environ.get("SOLM_API_KEYS", "")), *(ApiKey.parse(text.strip()) for text in given or [])]
    with checks.option("API keys"):
        check_keys(keys)
    names = [key.name for key in keys if key.name]
    lowest = by_name(floors, "--key-floor", names)
    highest = by_name(priorities, "--key-priority", names, "PRIORITY", "low")
    for name, priority in highest.items():
        if priority not in PRIORITIES:
            raise SolmError(f"--key-priority {name}: {priority!r} is none; choose one of {', '.join(PRIORITIES)}")
    return [replace(key, floor=lowest.get(key.name), priority=highest.get(key.name)) for key in keys]


def by_name(
    given: list[str] | None, typed: str, known: list[str], what: str = "BUDGET", example: str = "0.5"
) -> dict[str, Any]:
    """Values by name from a list of NAME=VALUE; raises `SolmError` for names that are not `known`."""
    found: dict[str, Any] = {}
    for each in given or []:
        name, equals, value = each.partition("=")
        if not (name and equals and value):
            raise SolmError(f"{typed}: {each!r} is not NAME={what}, such as {known[0] if known else 'alice'}={example}")
        if name not in known:
            choice = f"choose one of {', '.join(known)}" if known else "no API key has a name, as in NAME:SECRET"
            raise SolmError(f"{typed}: unknown name {name!r}; {choice}")
        if name in found:
            raise SolmError(f"{typed}: {name} is given twice")
        found[name] = value
    return found


def listenable(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise SolmError(f"--host: {host!r} is not an address of this machine: {error.strerror}") from error
    except OSError as error:
        option = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise SolmError(f"{option}: cannot listen on {host} port {port}: {error.strerror}") from error


def unix_socket(path: Path) -> None:
    """Check that --uds can be listened on."""
    if len(os.fsencode(path.absolute())) > _LONGEST_SOCKET:
        raise SolmError(f"--uds: {path} exceeds {_LONGEST_SOCKET} bytes, with its folders")
    if path.exists() and not path.is_socket():
        raise SolmError(f"--uds: {path} is there and no socket")
    if not path.absolute().parent.is_dir():
        raise SolmError(f"--uds: there is no folder {path.absolute().parent}")
    if path.exists():
        return  # a socket, which the server replaces
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(str(path))
        path.unlink()
    except OSError as error:
        raise SolmError(f"--uds: cannot listen on {path}: {error.strerror or error}") from error


def root_path(path: str) -> None:
    """Check --root-path."""
    if not _ROOT_PATH.fullmatch(path):
        raise SolmError(f"--root-path: {path!r} is no path such as /llm, without a slash at its end")


def origins(given: list[str] | None) -> None:
    """Check --allow-origin."""
    for origin in given or []:
        try:
            parts = urlsplit(origin)
            whole = (
                parts.scheme in ("http", "https") and f"{parts.scheme}://{parts.netloc}" == origin and parts.hostname
            )
        except ValueError:
            whole = False
        if not whole and origin != "*":
            raise SolmError(f"--allow-origin: {origin!r} is neither * nor an origin such as https://example.org")


def chat_template(path: Path | None) -> str | None:
    """The text of --chat-template, which one message of a user has been put through."""
    if path is None:
        return None
    from solm.backends.chat_template import render

    data = _bytes_of(path, "--chat-template")
    try:
        text = data.decode()
        render(text, [{"role": "user", "content": "Hello"}], dict.fromkeys(_SPECIAL_TOKENS, ""), True)
    except Exception as error:  # templates are programs, and fail in many ways
        raise SolmError(f"--chat-template: {path} cannot be used: {error}") from error
    return text


def _bytes_of(path: Path, typed: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise SolmError(f"{typed}: cannot read {path}: {error.strerror}") from error
    if len(data) > _LARGEST:
        raise SolmError(f"{typed}: {path} exceeds {_LARGEST} bytes")
    return data
