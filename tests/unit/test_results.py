"""The files behind published numbers: one schema, and the pages made of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from solm.evaluation.result import EvaluationResult, Record, TaskResult

ROOT = Path(__file__).parent
while not (ROOT / "pyproject.toml").exists():
    ROOT = ROOT.parent
RESULTS = ROOT / "evidence" / "results"
FILES = sorted(path.relative_to(RESULTS).as_posix() for path in RESULTS.rglob("*.json"))
KINDS = {"evaluation": EvaluationResult, "tasks": TaskResult}
ARMS = {
    "dense", "policy", "uniform", "allocated", "constant", "tuned", "random", "teal", "oracle", "token-table", "top-p",
    "entropy", "drift", "per-request", "given", "upper-bits",
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_result_file_has_the_schema(name):
    content = json.loads((RESULTS / name).read_text())
    found = KINDS.get(content["kind"], Record).model_validate(content)
    assert found.command
    assert found.settings
    assert {"commit", "machine", "versions", "created"} <= set(found.environment)
    if not isinstance(found, Record):
        arms = {point.arm for point in found.points if not point.arm.startswith("best-of-")}
        assert arms <= ARMS


def test_every_page_agrees_with_its_files_and_shows_all_of_them():
    subprocess.run([sys.executable, ROOT / "evidence" / "report.py", "--check"], check=True)
