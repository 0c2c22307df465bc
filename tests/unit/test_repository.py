"""The repository: sizes and docstrings of modules, what sources may not contain, what README and cards promise."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def test_modules_stay_small_and_documented():
    for path in SOURCES:
        text = path.read_text()
        assert len(text.splitlines()) <= 300, path
        assert text.startswith('"""'), path


def test_no_pickle_and_no_remote_code():
    for path in SOURCES:
        text = path.read_text()
        for bad in ("torch.load(", "import pickle", "trust_remote_code=True", "weights_only=False"):
            assert bad not in text, (path, bad)


def test_imports_are_seen_by_the_check_of_layers():
    hidden = {path.relative_to(ROOT / "src/solm").as_posix() for path in SOURCES if "import_module" in path.read_text()}
    assert hidden == {"__init__.py", "research/studies.py"}, "both import what is theirs"


def test_readme_shows_the_two_commands():
    readme = (ROOT / "README.md").read_text()
    assert "make run" in readme
    assert "make test" in readme


def test_model_cards_of_shipped_policies_say_what_the_results_say():
    cards = {path: path.read_text() for path in sorted((ROOT / "src/solm/policies/builtin").glob("*/README.md"))}
    code = "import cards; print(*(cards.card(name) for name in sorted(cards.POLICIES)), sep='', end='')"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True, check=True
    ).stdout
    assert told == "".join(cards.values())
