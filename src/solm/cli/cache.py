"""`solm cache`."""

import re
import shutil
import time
from pathlib import Path
from typing import NamedTuple

from solm.cli.output import Result
from solm.core.errors import SolmError
from solm.core.files import cache_folder

_KINDS = {
    "repacked weights": r".+\.weights",
    "built engine": r"engine-[0-9a-f]{16}\.so",
    "step times": r".+\.stepclock\.json",
    "calibration": r".+\.calibration\.json",
    "tokenizer": r"tokenizer-[0-9a-f]{16}",
    "converted model": r".+-[0-9a-f]{16}",
    "unfinished": r"\..+\.weights\..+|tmp\w+(\.so)?",
}
"""What is kept, by the whole name of a file or folder. Nothing else in the folder is touched."""
_UNFINISHED_AFTER = 3600.0
"""Seconds without a change after which nobody is writing any more."""


class Entry(NamedTuple):
    """One thing that is kept."""

    path: Path
    kind: str
    nbytes: int
    name: str


def cache(action: str = "list", names: list[str] | None = None, /) -> Result:
    """List or clear the cache: repacked weights, built engines, step times, tokenizers and converted models.

    What is removed is made again when it is needed, and so are calibrations.

    They are kept in the folder that SOLM_CACHE names, by default ~/.cache/solm. GGUF files of the hub, which are in the
    hub's own cache, are listed too, and are removed only by their names.

    \b
    Examples:
      solm cache
      solm cache list --json
      solm cache clear
      solm cache clear hf:Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF:qwen2.5-coder-0.5b-instruct-q4_k_m.gguf

    Args:
        action: list: show what is cached; clear: remove it.
        names: clear: names from the list; without any, all but the files of the hub.
    """
    folder = cache_folder()
    if action not in ("list", "clear"):
        raise SolmError(f"ACTION: unknown action {action!r}; choose list or clear")
    if names and action != "clear":
        raise SolmError(f"NAMES: they go with clear, not {action}")
    found, downloaded = entries(folder), downloads()
    if action == "list":
        found += downloaded
    if action == "clear":
        known = {entry.name: entry for entry in (*found, *downloaded)}
        for name in names or []:
            if name not in known:
                raise SolmError(f"NAMES: nothing called {name!r} is kept in {folder}")
        found = [known[name] for name in dict.fromkeys(names)] if names else found
        for entry in found:
            try:
                for path in (entry.path, entry.path.resolve()):  # a file of the hub is a link
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            except OSError as error:
                raise SolmError(f"cannot remove {entry.path}: {error.strerror}") from error
    total = sum(entry.nbytes for entry in found)
    listed = [{"name": entry.name, "kind": entry.kind, "bytes": entry.nbytes} for entry in found]
    lines = [f"{entry.nbytes / 1e6:10,.1f} MB  {entry.kind:16}  {entry.name}" for entry in found]
    done = "removed from" if action == "clear" else "in"
    content = {"folder": str(folder), "removed" if action == "clear" else "entries": listed, "bytes": total}
    return Result(content, [*lines, f"{total / 1e6:10,.1f} MB  {done} {folder}"])


def entries(folder: Path) -> list[Entry]:
    """What is kept in `folder`, largest first; what another process may be writing now is left out."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else []:
        kind = next((kind for kind, name in _KINDS.items() if re.fullmatch(name, path.name)), None)
        if kind is None or path.is_symlink() or (kind == "converted model" and not (path / "config.json").is_file()):
            continue
        if kind == "unfinished" and time.time() - path.stat().st_mtime < _UNFINISHED_AFTER:
            continue
        size = sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
        found.append(Entry(path, kind, size, path.name))
    return sorted(found, key=lambda entry: (-entry.nbytes, entry.name))


def downloads() -> list[Entry]:
    """GGUF files in the hub's cache, by the names that load them."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    files = [(each.repo_id, file) for each in repositories for revision in each.revisions for file in revision.files]
    found = {f"hf:{name}:{file.file_name}": file for name, file in files if file.file_name.endswith(".gguf")}
    return [Entry(file.file_path, "file of the hub", file.size_on_disk, name) for name, file in sorted(found.items())]
