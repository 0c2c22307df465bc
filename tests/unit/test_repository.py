"""The tree itself: style, types, layers, sizes, promises."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "src", "tests", "benchmarks"],
        ["ruff", "format", "--check", "src", "tests", "benchmarks"],
        ["mypy"],
        ["lint-imports"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_tools_are_content(command):
    tool = Path(sys.executable).with_name(command[0])
    done = subprocess.run([str(tool), *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_documentation_builds_and_its_links_lead_somewhere(tmp_path):
    """mkdocs in strict mode: a dead link, a missing page or a name that the reference does not find is an error."""
    tool = Path(sys.executable).with_name("mkdocs")
    done = subprocess.run(
        [str(tool), "build", "--strict", "--site-dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "torch" / "index.html").read_text().count("solm.") > 50


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
