"""Result files of any kind, read for one page; what does not belong together is refused."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from solm.core.errors import DamagedFileError, SolmError
from solm.core.provenance import plain_names
from solm.evaluation.result import SCHEMA_VERSION, EvaluationResult, TaskResult

Result = EvaluationResult | TaskResult
_KINDS: dict[str, type[Result]] = {"evaluation": EvaluationResult, "tasks": TaskResult}
_MADE = ("environment.commit", "environment.machine.processor", "settings.space")
_MEASURED = ("model", "dtype", "texts", "context", "length", "data", "budgets")
_NEEDED = {"evaluation": (*_MADE, *(f"settings.{name}" for name in _MEASURED)), "tasks": _MADE}
"""What a page tells of a result, by kind."""
_SAME = ("model", "dtype", "texts", "context", "length", "seed", "data")


def read_results(paths: list[Path]) -> list[tuple[str, Result]]:
    """The results in `paths`, files of one result (.json) or of one a line (.jsonl), under names of their own.

    Raises `DamagedFileError` for a half-written file or a schema version that this solm cannot read, and `SolmError`
    where results that would share a plot were measured on different tokens.
    """
    found: list[tuple[str, Result]] = []
    for path, short in zip(paths, plain_names([str(path) for path in paths]), strict=True):
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise SolmError(f"cannot read {path}: {error}") from error
        lines = [line for line in text.splitlines() if line.strip()] if path.suffix == ".jsonl" else [text]
        for number, line in enumerate(lines, start=1):
            name = short.removesuffix(path.suffix)
            name = name if len(lines) == 1 else f"{name}, line {number}"
            found.append((name, _parse(line, f"{path}, line {number}" if len(lines) > 1 else str(path))))
    if not found:
        raise SolmError("no results to report on: give at least one result file that holds one")
    _check_together(found)
    return found


def _parse(text: str, where: str) -> Result:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DamagedFileError(f"{where} is half-written or no JSON: {error.msg}") from error
    if not isinstance(content, dict):
        raise DamagedFileError(f"{where} is no result: it holds a {type(content).__name__}, not an object")
    kind = content.get("kind")
    if kind not in _KINDS:
        raise DamagedFileError(f"{where} is a result of kind {kind!r}; a report reads {' and '.join(_KINDS)}")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise DamagedFileError(f"{where} has schema version {version!r}; this solm reads {SCHEMA_VERSION}")
    try:
        found = _KINDS[kind].model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DamagedFileError(f"{where} is damaged: {place}: {first['msg']}") from error
    for place in _NEEDED[kind]:
        value: Any = content
        for part in place.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            raise DamagedFileError(f"{where} is damaged: {place}: it is missing")
    return found


def _check_together(found: list[tuple[str, Result]]) -> None:
    """Evaluations must be of the same tokens."""
    evaluations = [(name, result) for name, result in found if isinstance(result, EvaluationResult)]
    for name, result in evaluations[1:]:
        known, other = evaluations[0]
        changed = [key for key in _SAME if result.settings.get(key) != other.settings.get(key)]
        if result.data_fingerprint != other.data_fingerprint:
            changed.append("text")
        if changed:
            raise SolmError(
                f"{known} and {name} differ in {', '.join(changed)}: their perplexities cannot share a page"
            )
