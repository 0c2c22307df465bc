"""Libraries that were compiled ahead of time and came with the package: one for every instruction set, and a list of
them with digests."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from solm.backends.cpu.build import damage, sources_digest
from solm.core.errors import SolmError

FOLDER = Path(__file__).parent / "prebuilt"
LIST = "engines.json"


def library_name(variant: str) -> str:
    """The file of a variant's library."""
    return f"engine-{variant}.so"


def write_list(folder: Path, machine: str, variants: Iterable[str]) -> None:
    """Write the list of a folder's libraries: their architecture, the digest of the sources, and their own."""
    content = {
        "machine": machine,
        "sources": sources_digest(),
        "libraries": {name: _digest(folder / library_name(name)) for name in variants},
    }
    (folder / LIST).write_text(json.dumps(content, indent=2) + "\n")


def prebuilt_library(variant: str, machine: str) -> Path | None:
    """The library of a variant that came with the package; None where the package came without.

    Raises `SolmError` for libraries of another architecture or of other sources, and for damaged ones.
    """
    if not (FOLDER / LIST).exists():
        return None
    cure = f"reinstall solm, or delete {FOLDER} and the engine is compiled here"
    try:
        content = json.loads((FOLDER / LIST).read_text())
        found, sources, libraries = content["machine"], content["sources"], content["libraries"]
        expected = libraries.get(variant)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SolmError(f"{FOLDER / LIST} is damaged; {cure}") from error
    if found != machine:
        raise SolmError(f"{FOLDER} has libraries for {found} and this machine is {machine}; {cure}")
    if sources != sources_digest():
        raise SolmError(f"{FOLDER} has libraries of another version of solm; {cure}")
    if expected is None:
        return None
    path = FOLDER / library_name(variant)
    reason = damage(path)
    if reason is None and _digest(path) != expected:
        reason = "it is damaged"
    if reason is not None:
        raise SolmError(f"{path} cannot be used: {reason}; {cure}")
    return path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
