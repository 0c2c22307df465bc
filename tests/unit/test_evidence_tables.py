"""The tables of larger models that may come later: graded replies, long contexts, MMLU."""

import json
from pathlib import Path
from typing import Any

import pytest

from solm.research.graded_results import points

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
GAP = {"value": 0.01, "low": -0.01, "high": 0.03}


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """All tables by name, reading results from a folder that is empty at first."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import published
    import tables_context  # noqa: F401
    import tables_replies  # noqa: F401
    import tables_tasks  # noqa: F401
    from cells import TABLES

    monkeypatch.setattr(published, "RESULTS", tmp_path)
    for name in ("read", "settings"):
        monkeypatch.setattr(published, name, getattr(published, name).__wrapped__)
    return TABLES


def write(path: Path, settings: dict[str, Any], results: dict[str, Any]) -> None:
    path.write_text(json.dumps({"settings": settings, "results": results}))


def replies(ended: bool | None = None, **metrics: float) -> list[dict[str, Any]]:
    """What an arm made of four problems, all alike."""
    spent = {"attention": 1.0, "mlp": 0.8, "bits": 1.0, "net": 0.9, "ms": 18.0, "dense_ms": 20.0}
    one = {"metrics": metrics, "steps": 9, "tokens": 10, "spent": spent}
    return [one if ended is None else {**one, "ended": ended}] * 4


def graded(path: Path, currency: str = "time") -> None:
    """Four problems of GSM8K, which uniform alone does not solve, and four chat prompts, at one budget."""
    arms = ("dense", "policy@0.9", "constant@0.9", "uniform@0.9")
    solved = {arm: replies(arm != "uniform@0.9", solved=float(arm != "uniform@0.9")) for arm in arms}
    solved["constant@0.9"] = solved["constant@0.9"][:2] + replies(True, solved=0.0)[:2]
    alike = {arm: replies(agreed=0.75, identical=0.5, kl=float(arm == "uniform@0.9")) for arm in arms}
    kinds = {kind: {"problems": 4, "points": points(rows)} for kind, rows in (("gsm8k", solved), ("chat", alike))}
    write(path, {"max_tokens": 320, "limit": 4}, {"kinds": kinds, "currency": currency})


def test_nothing_is_shown_before_it_is_measured(tables: Any) -> None:
    assert tables["graded"]() == tables["long-context-larger"]() == tables["tasks-largest"]() == ""


def test_graded_replies_are_shown_by_arm(tables: Any, tmp_path: Path) -> None:
    graded(tmp_path / "graded-0.5b.json")
    found = tables["graded"]()
    lines = found.splitlines()
    assert "### Replies that are graded, Qwen2.5-Coder-0.5B" in lines
    assert "at most 320 tokens" in found
    assert "(GSM8K: 4, chat: 4)" in found
    all_four = "100.0 [51.0, 100.0] | 10 | 0 | 18.0"
    assert f"| GSM8K | dense | {all_four} | — | — |" in lines
    assert f"| GSM8K, 0.9 | policy | {all_four} | — | +0.0 [+0.0, +0.0] |" in lines
    [half] = [line for line in lines if line.startswith("| GSM8K, 0.9 | constant |")]
    assert half.startswith("| GSM8K, 0.9 | constant | 50.0 [15.0, 85.0] | 10 | 0 | 18.0 | +50.0 [+0.0, +100.0] |")
    none = "| GSM8K, 0.9 | uniform | 0.0 [0.0, 49.0] | 10 | 100 | 18.0 | **+100.0** [+100.0, +100.0] | — |"
    assert none in lines
    assert "| 0.9 | policy | 18.0 | 75 | 50 | 0.0000 | — |" in lines
    assert "| 0.9 | uniform | 18.0 | 75 | 50 | 1.0000 | **-1.0000** [-1.0000, -1.0000] |" in lines


def test_graded_replies_say_what_they_do_not_show(tables: Any, tmp_path: Path) -> None:
    graded(tmp_path / "graded-0.5b.json")
    found = tables["graded"]()
    assert "reach up to ±50 points" in found
    assert "graded by the last number that it has said" in found
    assert "this run timed nothing" in found
    graded(tmp_path / "graded-0.5b.json", "keep")
    assert "timed nothing" not in tables["graded"]()
    assert "Budgets are net keeps" in tables["graded"]()


def long_context(path: Path, milliseconds: bool, tasks: tuple[str, ...] = ()) -> None:
    def arms(**more: Any) -> dict[str, Any]:
        names = [f"{arm} {share:g}" for arm in ("constant", "uniform", "policy") for share in (1, 0.3, 0.2, 0.1)]
        gaps = {"minus_dense": GAP, "minus_constant": GAP, "constant_minus_uniform": GAP}
        return {name: {**gaps, "nats": 7.5, **more} for name in names}

    timed = {"milliseconds": 25.0} if milliseconds else {}
    how = {"texts": 3, "length": 128, "timed": 16, "questions": 2}
    write(path, how, {"text": {"4096": arms(**timed)}, "retrieval": {name: arms() for name in tasks}})


def test_long_contexts_of_a_larger_model_are_shown_with_milliseconds(tables: Any, tmp_path: Path) -> None:
    long_context(tmp_path / "long-context-0.5b.json", True)
    long_context(tmp_path / "retrieval-0.5b.json", False, ("niah_multikey",))
    found = tables["long-context-larger"]()
    cell, gap = "+0.010 → +0.010, 25.0 ms", "+0.010 [-0.010, +0.030]"
    row = f"| 4,096 | 25.0 ms | {cell} | {cell} | {cell} | +0.010, 25.0 ms | {gap} | {gap} |"
    assert row in found.splitlines()
    assert "3 texts of books; of each, 128 tokens" in found
    assert "The first 16 of them" in found
    assert "12 blocks of 32 tokens from 3 texts" in found
    none = "+0.0 [-0.0, +0.0]"
    assert f"| needles, pages 0.2 | -7.5 | -7.5 | -7.5 | {none} | -7.5 | {none} |" in found.splitlines()


def test_long_contexts_without_times_or_questions_say_so(tables: Any, tmp_path: Path) -> None:
    long_context(tmp_path / "long-context-0.5b.json", False)
    found = tables["long-context-larger"]()
    assert "Steps were not timed." in found
    assert "| 4,096 | — | +0.010 → +0.010, — |" in found
    assert "Answers" not in found


@pytest.mark.parametrize(
    ("control", "said"),
    [
        ("answer", "Answers alone are under control"),
        ("question", "The question's own tokens are under control here, too"),
    ],
)
def test_mmlu_of_the_largest_model_says_how_many_questions(
    tables: Any, tmp_path: Path, control: str, said: str
) -> None:
    difference = {"acc": GAP, "margin": GAP}
    common = {"questions": 228, "scores": {"acc": 0.5}, "realised": {"time": 0.8}}
    arms = ("policy", "uniform", "constant", "allocated")
    found = [{"arm": "dense", "budget": 1.0, "differences": {}, **common}]
    found += [{"arm": arm, "budget": 0.8, "differences": difference, **common} for arm in arms]
    (tmp_path / "tasks-1.5b").mkdir()
    whole = {"settings": {"fewshot": 5, "limit": 4, "control": control}, "points": found}
    (tmp_path / "tasks-1.5b" / "mmlu.json").write_text(json.dumps(whole))
    told = tables["tasks-largest"]()
    assert f"5 examples, equally many questions of each subject. {said}" in told
    scores = " | ".join(["50.0"] * 5)
    assert f"| 0.8 | 228 | 0.80 | {scores} | +1.0 [-1.0, +3.0] |" in told
    assert "reach up to ±2.0 points" in told
