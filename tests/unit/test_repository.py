"""The repository: docstrings of modules, what sources may not contain, what the README promises."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def test_modules_begin_with_a_docstring():
    for path in SOURCES:
        assert path.read_text().startswith('"""'), path


def test_no_pickle_and_no_remote_code():
    for path in SOURCES:
        text = path.read_text()
        for bad in ("torch.load(", "import pickle", "trust_remote_code=True", "weights_only=False"):
            assert bad not in text, (path, bad)


def test_imports_are_seen_by_the_check_of_layers():
    hidden = {path.relative_to(ROOT / "src/solm").as_posix() for path in SOURCES if "import_module" in path.read_text()}
    assert hidden == {"__init__.py"}, "it imports what is its own"
