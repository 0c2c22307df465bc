"""Options of benchmarks: what is recorded with a result has been used, and what cannot be measured is refused."""

import argparse
import re
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if "= parser(" in path.read_text())


def sources(name: str, seen: set[str]) -> str:
    """The source of a benchmark and of the modules beside it that it imports."""
    path = BENCHMARKS / f"{name}.py"
    if name in seen or not path.exists():
        return ""
    text = path.read_text()
    imported = re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE)
    return text + "".join(sources(other, seen | {name}) for other in imported)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_option_is_read(name):
    own, text = (BENCHMARKS / f"{name}.py").read_text(), sources(name, set())
    shared = re.findall(r'"(dtype|rounds)"', next(line for line in own.splitlines() if "= parser(" in line))
    for option in [*shared, *re.findall(r'add_argument\(\s*"--([a-z-]+)"', own)]:
        assert re.search(rf"(options|asked)\.{option.replace('-', '_')}\b", text), option


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_benchmark_finds_what_it_imports(name, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    try:
        found = import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("solm", *(path.stem for path in BENCHMARKS.glob("*.py"))):
            raise
        pytest.skip(f"{missing} is not installed")
    assert callable(found.main)


def test_a_benchmark_takes_only_what_it_names(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    parser = import_module("common").parser
    plain = vars(parser(None).parse_args([]))
    assert set(plain) == {"json", "out", "model"}
    assert vars(parser(None, "dtype", "rounds").parse_args([])) == {**plain, "dtype": "auto", "rounds": 5}


def test_fewer_texts_than_rows_are_refused(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", ["batch.py", "--data", "text.txt", "--rows", "1,16", "--texts", "8"])
    with pytest.raises(SystemExit) as ended:
        import_module("batch").main()
    assert ended.value.code == 2
    assert "--texts 8: must be at least 16, the most of --rows" in capsys.readouterr().err


@pytest.mark.parametrize(("script", "run", "what"), [
    ("quality", "policies", "evaluate"), ("tasks", "answers", "evaluate_tasks"),
])  # fmt: skip
def test_what_an_unfinished_run_has_kept_goes_with_its_result(script, run, what, tmp_path, monkeypatch):
    if script == "tasks":
        pytest.importorskip("lm_eval")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module, kept = import_module(script), []

    def evaluated(*given, **named):
        kept.extend(path for path in [*given, *named.values()] if isinstance(path, Path))
        kept[-1].write_text("{}")
        return SimpleNamespace(model_dump_json=lambda indent: "{}")

    monkeypatch.setattr(module, what, evaluated)
    for name in ("held_out", "tuning_text", "tuned", "load_tasks", "verdict"):
        monkeypatch.setattr(module, name, lambda *given, **named: [], raising=False)
    monkeypatch.setattr(module.solm, "load", lambda *given, **named: SimpleNamespace(space=None, detach=lambda: None))
    monkeypatch.setattr(module, "RIVALS", {"mlp-fine": ()}, raising=False)
    getattr(module, run)(argparse.Namespace(
        policy="builtin:smollm2-135m", model="", dtype="auto", data=tmp_path, folder=tmp_path, spaces="mlp-fine",
        context=1, length=1, texts=1, trials=1, oracle="", tasks="piqa", questions=None,
    ))  # fmt: skip
    assert len(kept) == 1
    assert [path.suffix for path in tmp_path.iterdir() if not path.name.startswith(".")] == [".json"]
