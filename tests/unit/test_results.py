"""The files behind published numbers: one schema, and the pages made of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from evidence.record import Record
from solm.evaluation.result import EvaluationResult

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "evidence" / "results"
FILES = sorted(path.relative_to(RESULTS).as_posix() for path in RESULTS.rglob("*.json"))


@pytest.mark.parametrize("name", FILES)
def test_every_result_file_has_the_schema(name):
    content = json.loads((RESULTS / name).read_text())
    assert content["command"]
    assert content["settings"]
    assert {"commit", "machine", "versions", "created"} <= set(content["environment"])
    (EvaluationResult if content["kind"] == "evaluation" else Record).model_validate(content)


def test_every_page_agrees_with_its_files_and_shows_all_of_them():
    subprocess.run([sys.executable, ROOT / "evidence" / "report.py", "--check"], check=True)
