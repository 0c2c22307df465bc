"""GGUF files of the hub by name: ``hf:OWNER/NAME`` or ``hf:OWNER/NAME:Q4_K_M``."""

import hashlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from solm.core.errors import DamagedFileError, SolmError, first_line

_LOG = logging.getLogger("solm")
_NAME = re.compile(r"(?P<prefix>hf:)?(?P<repository>[\w.-]+/[\w.-]+?)(?::(?P<wanted>[\w.-]+))?")
_LIKED = ("Q4_K_M", "Q4_K_S", "Q5_K_M", "Q4_0", "Q5_0", "Q6_K", "Q8_0", "BF16", "F16")
"""Types of a file that is chosen where none is named, the first one that there is."""
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_DIGEST = re.compile("[0-9a-f]{64}")
_SHOWN = 12
"""Files that a message lists."""


def local_model(name: str, revision: str | None = None) -> str:
    """The path of the GGUF file that `name` stands for, downloaded if need be; any other name as it is.

    Names are ``hf:OWNER/NAME`` or a hub id with ``gguf`` in it, and after a colon the type of a file or its name;
    without one a file is chosen, and the logger ``solm`` says which. An interrupted download goes on where it was.
    Without a connection a file that was downloaded is used. Raises `SolmError` where there is no such repository or
    file, or several that the name may mean, and `DamagedFileError` for a download whose sha256 is not the hub's.
    """
    found = _NAME.fullmatch(name)
    if found is None or not (found["prefix"] or "gguf" in found["repository"].lower()) or Path(name).exists():
        if name.startswith("hf:"):
            raise SolmError(f"{name!r} is not hf:OWNER/NAME or hf:OWNER/NAME:TYPE, such as hf:me/model-GGUF:Q4_K_M")
        return name
    if not found["prefix"] and name.endswith(".gguf") and found["wanted"] is None:
        return name  # the path of a file that is missing, as what comes next says
    repository = found["repository"]
    files, offline = _files(name, repository, revision)
    file = choose(name, files, found["wanted"])
    if found["wanted"] is None:
        _LOG.info("%s: %s of the hub repository %s", name, file, repository)
    return str(_downloaded(name, repository, file, revision, offline))


def choose(name: str, files: Sequence[str], wanted: str | None) -> str:
    """The file of a repository that `name` means. wanted: the end of its name without ``.gguf``, or all of it; None:
    the only one, or one of a type that is liked. Raises `SolmError`, which lists what there is."""
    whole = [file for file in files if file.endswith(".gguf") and not _PART.search(file) and "mmproj" not in file]
    if not whole:
        parts = " in one piece" if any(map(_PART.search, files)) else ""
        raise SolmError(f"{name}: this hub repository has no GGUF file{parts}")
    types = {file: re.split(r"[-./]", file.removesuffix(".gguf"))[-1].upper() for file in whole}
    if wanted is None:
        liked = [file for one in _LIKED for file in whole if types[file] == one] if len(whole) > 1 else whole
    else:
        lower = wanted.lower()
        liked = [file for file in whole if lower in (types[file].lower(), file.lower(), Path(file).name.lower())]
    if liked and (wanted is None or len(liked) == 1):
        return liked[0]
    listed = ", ".join(sorted(liked or whole)[:_SHOWN]) + (", ..." if len(liked or whole) > _SHOWN else "")
    means = "means several" if liked else "means none" if wanted else "does not say which"
    raise SolmError(f"{name} {means} of its GGUF files; put a type or a name after a colon: {listed}")


def _files(name: str, repository: str, revision: str | None) -> tuple[list[str], bool]:
    """The names of a repository's files; and whether there is no connection, and they are those that were
    downloaded."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return [each.rfilename for each in HfApi().model_info(repository, revision=revision).siblings or []], False
    except HFValidationError as error:
        raise SolmError(f"{name}: {first_line(error)}") from error
    except Exception as error:  # those of the library by which this version of the hub's sends requests
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            reason = f"no such repository, or none that may be read ({error.response.status_code})"
            raise SolmError(f"{name}: {reason}") from error
        try:
            folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        except (ValueError, OSError):
            reason = f"the hub cannot be reached, and nothing of it was downloaded before: {first_line(error)}"
            raise SolmError(f"{name}: {reason}") from error
        return [str(path.relative_to(folder)) for path in folder.rglob("*.gguf")], True


def _downloaded(name: str, repository: str, file: str, revision: str | None, offline: bool) -> Path:
    """The path of a file in the hub's cache."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    known = try_to_load_from_cache(repository, file, revision=revision)
    try:
        path = Path(hf_hub_download(repository, file, revision=revision, local_files_only=offline))
    except Exception as error:
        raise SolmError(
            f"{name}: cannot download {file}: {first_line(error)}; the same command goes on with it"
        ) from error
    blob = path.resolve()  # which the hub names by its digest
    if known != str(path) and _DIGEST.fullmatch(blob.name):
        with blob.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if digest != blob.name:
            path.unlink()
            blob.unlink()
            raise DamagedFileError(f"{name}: the download of {file} has another sha256 than the hub says; try again")
    return path
