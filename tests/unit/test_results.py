"""The files behind published numbers: one schema, and each is cited by a page."""

import json
from fnmatch import fnmatch
from pathlib import Path

import pytest

from solm.evaluation.result import EvaluationResult, Record, TaskResult

ROOT = Path(__file__).parent
while not (ROOT / "pyproject.toml").exists():
    ROOT = ROOT.parent
RESULTS = ROOT / "docs" / "results"
FILES = sorted(path.relative_to(RESULTS).as_posix() for path in RESULTS.rglob("*.json*"))
KINDS = {"evaluation": EvaluationResult, "tasks": TaskResult}
BENCHMARKS = {
    "adherence", "allocation", "batch", "best-of", "between-steps", "budgets", "dial", "engine", "features", "fidelity",
    "fits", "free-running", "governor", "gpu", "graded", "grammars", "ladder", "fine-tuning", "kv-cache", "kv-drift",
    "learning", "long-context", "neighbours", "policy-cost", "precision", "domains", "rollout", "serve", "settings",
    "shedding", "constrained", "tasks-speed", "thresholds", "variants",
}  # fmt: skip
ARMS = {
    "dense", "policy", "uniform", "allocated", "constant", "tuned", "random", "teal", "oracle", "token-table", "top-p",
    "entropy", "drift", "per-request", "given", "upper-bits",
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_result_file_has_the_schema(name):
    content = json.loads((RESULTS / name).read_text())
    assert content["kind"] in KINDS | dict.fromkeys(BENCHMARKS)
    found = KINDS.get(content["kind"], Record).model_validate(content)
    assert found.command
    assert found.settings
    assert {"commit", "machine", "versions", "created"} <= set(found.environment)
    if not isinstance(found, Record):
        arms = {point.arm for point in found.points if not point.arm.startswith("best-of-")}
        assert arms <= ARMS


def test_every_result_file_is_cited():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    words = {word.strip("`*()[],;:|\"'") for page in pages for word in page.read_text().replace("](", " ").split()}
    cited = {
        word.split("docs/results/")[-1].split("results/")[-1] for word in words if ".json" in word and word[0] != "*"
    }
    assert FILES
    assert [name for name in FILES if not any(fnmatch(name, pattern) for pattern in cited)] == []
