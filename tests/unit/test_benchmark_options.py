"""Options of benchmarks: what is recorded with a result has been used, and what cannot be measured is refused."""

import re
import sys
from importlib import import_module
from pathlib import Path

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
