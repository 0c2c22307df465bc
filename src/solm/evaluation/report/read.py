"""Result files of any kind, read for one page; what does not belong together is refused."""

import json
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from solm.core.errors import DamagedFileError, SolmError
from solm.evaluation.result import EvaluationResult, TaskResult
from solm.research.domains import ShiftResult
from solm.research.kv_drift import PollutionResult

Result = EvaluationResult | TaskResult | PollutionResult | ShiftResult
_KINDS: dict[str | None, type[Result]] = {
    None: EvaluationResult, "tasks": TaskResult, "pollution": PollutionResult, "shift": ShiftResult,
}  # fmt: skip
_SAME = ("model", "dtype", "texts", "context", "length", "seed", "data")


def read_results(paths: list[Path]) -> list[tuple[str, Result]]:
    """The results in `paths`, files of one result (.json) or of one a line (.jsonl), under names of their own.

    Raises `DamagedFileError` for a half-written file or a schema version that this solm cannot read, and `SolmError`
    where results that would share a plot were measured on different tokens or have different versions.
    """
    found: list[tuple[str, Result]] = []
    for path in paths:
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise SolmError(f"cannot read {path}: {error}") from error
        lines = [line for line in text.splitlines() if line.strip()] if path.suffix == ".jsonl" else [text]
        for number, line in enumerate(lines, start=1):
            name = path.stem if len(lines) == 1 else f"{path.stem}, line {number}"
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
        raise DamagedFileError(f"{where} is a result of kind {kind!r}; this solm reads eval, tasks, pollution, shift")
    version, known = content.get("schema_version"), get_args(_KINDS[kind].model_fields["schema_version"].annotation)
    if version not in known:
        raise DamagedFileError(
            f"{where} has schema version {version!r}; this solm reads {' and '.join(map(str, known))}"
        )
    try:
        return _KINDS[kind].model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DamagedFileError(f"{where} is damaged: {place}: {first['msg']}") from error


def _check_together(found: list[tuple[str, Result]]) -> None:
    """Evaluations must be of the same tokens, and results of one kind of one version."""
    first: dict[type[Result], tuple[str, Result]] = {}
    for name, result in found:
        known, other = first.setdefault(type(result), (name, result))
        if result.schema_version != other.schema_version:
            raise SolmError(
                f"{known} has schema version {other.schema_version} and {name} {result.schema_version}: "
                "measure again, or report on them apart"
            )
        if not isinstance(result, EvaluationResult) or not isinstance(other, EvaluationResult):
            continue
        changed = [key for key in _SAME if result.settings.get(key) != other.settings.get(key)]
        if result.data_fingerprint != other.data_fingerprint:
            changed.append("text")
        if changed:
            raise SolmError(
                f"{known} and {name} differ in {', '.join(changed)}: their perplexities cannot share a page"
            )
