"""Reads the result files, and the cells that tables are made of."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
NONE = "–"
"""A cell of what was not measured."""


@cache
def load(path: Path) -> dict[str, Any]:
    """One result: kind, command, environment, settings, and what was measured."""
    return json.loads(path.read_text())


used: set[str] = set()
"""Names of the results that something shows."""


def result(name: str) -> dict[str, Any]:
    """A result by its name below evidence/results, without the ending."""
    used.add(name)
    return load(ROOT / "evidence" / "results" / f"{name}.json")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table; the first `words` columns are text, the others numbers."""
    lines = [f"| {' | '.join(head)} |", "| " + " | ".join(["---"] * words + ["---:"] * (len(head) - words)) + " |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def number(value: float | None, digits: int = 3) -> str:
    """With as many decimals; a dash for None."""
    return NONE if value is None else f"{value:,.{digits}f}"


def interval(found: dict[str, float] | None, digits: int = 3) -> str:
    """A difference with its 95 % interval."""
    if found is None:
        return NONE
    return f"{found['value']:+.{digits}f} [{found['low']:+.{digits}f}, {found['high']:+.{digits}f}]"


def median(found: Any, digits: int = 1) -> str:
    """The median of a measurement that has one, else the number."""
    return number(found["median"] if isinstance(found, dict) else found, digits)
