"""Chapters that appear once they were measured: the size ladder, its passages, and long contexts of a larger model."""

import json
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of benchmarks."""
    from importlib import import_module

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def module(name: str) -> ModuleType:
        return import_module(name)

    return module


def test_passages_are_cut_at_spaces_and_do_not_overlap(benchmark: Any, tmp_path: Path) -> None:
    words = " ".join(f"wörd{number}" for number in range(2000))
    (tmp_path / "one.txt").write_text(words)
    (tmp_path / "two.jsonl").write_text(json.dumps({"text": words.upper()}))
    found = benchmark("passages").passages([str(tmp_path / "one.txt"), str(tmp_path / "two.jsonl")], 5, 1000, 300)
    assert len(found) == 5
    assert [passage.text.isupper() for passage in found] == [False] * 3 + [True] * 2
    for passage in found:
        whole = words.upper() if passage.text.isupper() else words
        assert passage.before + passage.text in whole
        assert whole[whole.index(passage.before + passage.text) + len(passage.before + passage.text)] == " "
        assert passage.text.startswith(" ")
        assert 1000 <= len(passage.before) < 1010
        assert 300 <= len(passage.text) < 310
        assert passage.bytes == len(passage.text) + passage.text.lower().count("ö")
    places = sorted(words.index(passage.before) for passage in found[:3])
    assert all(later - earlier >= 1500 for earlier, later in pairwise(places))


def test_a_source_with_too_little_text_is_refused(benchmark: Any, tmp_path: Path) -> None:
    from solm.core.errors import DataError

    (tmp_path / "short.txt").write_text("word " * 500)
    with pytest.raises(DataError, match=r"short.txt has 1 passages of 1000 and 300 characters, of 2"):
        benchmark("passages").passages([str(tmp_path / "short.txt")], 2, 1000, 300)


def point(model: str, setting: str, milliseconds: float, texts: list[float], **more: Any) -> dict[str, Any]:
    return {
        "model": model, "type": "Q4_0", "own_type": True, "setting": setting, "texts": texts, "bytes_per_token": 4.0,
        "milliseconds": {"median": milliseconds, "low": milliseconds - 0.5, "high": milliseconds + 1},
        "minus_dense": {"value": 0.1, "low": 0.05, "high": 0.15}, **more,
    }  # fmt: skip


SMALL = [1.2, 1.1, 1.3, 1.2, 1.25, 1.15]
LARGE = [text - 0.2 for text in SMALL]
POINTS = [
    point("builtin:smollm2-135m", "dense", 2.0, SMALL),
    point("builtin:smollm2-135m", "budget 0.8", 1.6, [text + 0.1 for text in SMALL]),
    point("large.gguf", "dense", 10.0, LARGE),
    point("large.gguf", "dense", 7.0, [text - 0.1 for text in SMALL], type="Q2_K", own_type=False),
    point("large.gguf", "budget 0.9", 9.0, [text - 0.19 for text in SMALL]),
    point("large.gguf", "budget 0.8", 8.0, [text - 0.1 + 0.01 * (-1) ** at for at, text in enumerate(SMALL)]),
    point("large.gguf", "budget 0.7", 7.5, [text - 0.05 for text in SMALL]),
]


def test_a_rival_is_the_best_dense_file_that_takes_no_longer(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    published = benchmark("published_ladder")
    monkeypatch.setattr(published, "read", lambda name: {"points": POINTS, "data": ["a.txt"]})
    rungs = published.rungs()
    verdicts = {}
    for rung in (rung for rung in rungs if rung.dialled):
        rival = published.rival(rung, rungs)
        verdicts[rung.model, rung.setting] = (rival and rival.file, published.verdict(rung, rival))
    assert verdicts == {
        ("SmolLM2-135M", "budget 0.8"): (None, "alone"),
        ("large.gguf", "budget 0.9"): ("large.gguf Q2_K", "wins"),
        ("large.gguf", "budget 0.8"): ("large.gguf Q2_K", "ties"),
        ("large.gguf", "budget 0.7"): ("large.gguf Q2_K", "loses"),
    }


def test_the_page_says_so_once_it_was_measured(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    published, tables, figures = (benchmark(name) for name in ("published_ladder", "tables_ladder", "figures"))
    monkeypatch.setattr(tables, "measured", lambda name: False)
    assert tables.size_ladder() == ""
    monkeypatch.setattr(tables, "measured", lambda name: True)
    monkeypatch.setattr(published, "read", lambda name: {"points": POINTS, "data": ["a.txt"]})
    monkeypatch.setattr(published, "accuracy", lambda model: (0.41, 2000) if model == "large.gguf" else None)
    told = tables.size_ladder()
    assert (
        "- **large.gguf**, by budget: at 0.9 better than every dense file that takes no longer; at 0.8 as good as"
        in told
    )
    assert (
        "| large.gguf | Q4_0 | budget 0.9 | 9.0 (8.5 to 10.0) | 0.90 | 1.010 | +0.100 [+0.050, +0.150] | "
        "large.gguf Q2_K |" in told
    )
    assert "| large.gguf | Q4_0 | dense | 10.0 (9.5 to 11.0) | — | 1.000 | — | — | — | 41.0 (2,000) |" in told
    drawn = figures.ladder()
    assert drawn.count("<circle") == len(POINTS) + 3
    assert "large.gguf" in drawn
