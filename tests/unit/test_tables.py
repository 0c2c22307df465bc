"""The tables of the README and the documentation equal the results that they are written from."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def check(script: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)


def test_tables_are_what_the_results_say() -> None:
    done = check(ROOT / "benchmarks" / "tables.py")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A tree with the pages, the results and the scripts alone."""
    for name in ("README.md", "docs", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def test_an_altered_table_is_found(copied: Path) -> None:
    readme = copied / "README.md"
    text = readme.read_text()
    before, mark, after = text.partition("<!-- table: headline -->\n")
    readme.unlink()
    readme.write_text(before + mark + "| by hand |\n" + after)
    scripts = copied / "benchmarks"
    names = [path.name for path in scripts.glob("*.py")]
    scripts.unlink()
    scripts.mkdir()
    for name in names:
        (scripts / name).write_text((ROOT / "benchmarks" / name).read_text())
    done = check(scripts / "tables.py")
    assert done.returncode == 1
    assert "README.md" in done.stdout
