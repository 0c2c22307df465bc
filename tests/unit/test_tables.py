"""The tables, figures and statements of the README and the documentation equal the results that they are made from."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def check(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "benchmarks" / "tables.py"), "--check"]
    return subprocess.run(command, capture_output=True, text=True)


def test_pages_say_what_the_results_say() -> None:
    done = check(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A tree with the pages, the results and the scripts alone."""
    shutil.copy(ROOT / "README.md", tmp_path)
    for name in ("docs", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_whatever_differs_from_the_results_is_named(copied: Path) -> None:
    result = copied / "docs" / "results" / "dial-8064.json"
    changed = json.loads(result.read_text())
    for setting in changed["results"]["contexts"]["8064"]["settings"]:
        if (setting["pages"], setting["mlp"]) == (1, 1):
            setting["uniform"]["milliseconds"] = 5.0
    result.write_text(json.dumps(changed))
    scale = copied / "docs" / "scale.md"
    scale.write_text(scale.read_text() + "\nIt is 3.7 times as fast.\n\n| a |\n| ---: |\n| 7 |\n")
    done = check(copied)
    assert done.returncode == 1
    for said in (
        "docs/results-speed.md: differs",
        "docs/budget.md: differs",
        "docs/figures/quality.svg: differs",
        "docs/results-speed.md: the results say otherwise: 'The dial adds little",
        "docs/budget.md: the results say otherwise: 'nearly twice as fast'",
        "docs/scale.md: no statement says where '3.7 times' comes from",
        "docs/scale.md: a table of numbers",
    ):
        assert said in done.stdout
    assert "docs/serving.md" not in done.stdout


def test_instruction_sets_are_shown_where_they_were_measured(copied: Path) -> None:
    def spread(value: float) -> dict[str, float]:
        return {"median": value, "low": value, "high": value}

    def found(rate: float, step: float, setting: str) -> dict[str, object]:
        steps = {setting: {"1": spread(step)}}
        return {"contexts": {"1024": {"prefill_tokens_per_second": spread(rate), "step_ms": steps}}}

    results = copied / "docs" / "results"
    for path in results.glob("variants-*.json"):
        path.unlink()
    theirs = found(1000, 8, "dense")
    avx2 = {**found(3000, 4, "dense, every logit"), "llama.cpp": theirs}
    every = {"variants": {"avx2": avx2, "native": found(3100, 3.9, "dense, every logit")}}
    (results / "variants-135m.json").write_text(json.dumps({"results": every}))
    command = [sys.executable, str(copied / "benchmarks" / "tables.py")]
    subprocess.run(command, capture_output=True, check=True)
    text = (copied / "docs" / "results-speed.md").read_text().replace("\u00a0", " ")
    assert "| Model | Instruction set | prompt of 1,024, tokens/s | step after 1,024, ms |\n" in text
    assert "| SmolLM2-135M | `avx2` | 1,000 → 3,000 (3.00×) | 8.0 → 4.0 (2.00×) |\n" in text
    assert "| SmolLM2-135M | `native` | 3,100 | 3.9 |\n" in text
