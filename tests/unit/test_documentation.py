"""README and documentation: families, links, and commands that exist with the options that they show."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from solm.backends.cpu.files.spec import FAMILIES
from solm.backends.torch.families import TESTED_FAMILIES
from solm.cli.main import MOVED, app

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "evidence/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`((?:solm|python evidence/)[^`]*)`")


def commands(page: Path) -> Iterator[tuple[list[str], bool]]:
    """Every command of solm and of the benchmarks on a page, as a shell splits it, and whether it can be pasted."""
    text = page.read_text()
    blocks = [line for block in FENCED.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    spans = [" ".join(found.split()) for found in INLINE.findall(FENCED.sub("", text))]
    for line, whole in [*((line, True) for line in blocks), *((line, False) for line in spans)]:
        for part in re.split(r" && | \| |; ", re.sub(r"\s#.*", "", line)):
            words = shlex.split(re.sub(r"^[A-Z_]+=\S* | <.*", "", part))
            if "solm.cli" in words:  # torchrun ... -m solm.cli
                words = ["solm", *words[words.index("solm.cli") + 1 :]]
            if words[:1] == ["solm"] or (len(words) > 1 and words[1].startswith("evidence/")):
                yield words, whole and "..." not in words


SHOWN = [
    pytest.param(words, whole, id=f"{page.relative_to(ROOT)}: {' '.join(words)}")
    for page in PAGES
    if page.name != "CHANGELOG.md"  # which tells of commands that are gone, too
    for words, whole in commands(page)
]


@cache
def hooks() -> Any:
    """The module that writes what documentation has from the code."""
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def known() -> dict[str, Any]:
    """The commands of the command line by name."""
    return dict(hooks().described(typer.main.get_command(app), "solm"))


@pytest.mark.parametrize(("words", "whole"), SHOWN)
def test_shown_commands_exist_with_their_options(words: list[str], whole: bool) -> None:
    asked = {word.partition("=")[0] for word in words if word.startswith("--")} - {"--help"}
    if words[0] != "solm":
        assert (ROOT / words[1]).exists()
        sources = "".join(path.read_text() for path in (ROOT / "evidence").rglob("*.py"))
        fields = {option: option.removeprefix("--").replace("-", "_") for option in asked}
        assert [one for one, field in fields.items() if f'"{one}"' not in sources and f"{field}:" not in sources] == []
        return
    name = " ".join(words[:2])
    if name in ("solm", "solm --version", "solm lm-eval") or words[1] in MOVED:
        return
    command = known()[name]
    assert (
        asked - {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
        == set()
    )
    if whole:  # raises for what is missing, superfluous or out of range
        command.make_context(name, words[len(name.split()) :])


def test_the_readme_names_every_family_of_each_backend() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    both, torch_alone = (line.split("|")[1].split(",") for line in lines if line.startswith(("| llama,", "| gpt2 ")))
    assert [name.strip() for name in both] == [name.removesuffix("_text") for name in FAMILIES]
    row = next(line for line in (ROOT / "docs/model.md").read_text().splitlines() if line.startswith("| families |"))
    assert row.split("|")[3].strip() == ",".join(both).strip()
    named = {name.strip() for name in [*both, *torch_alone]}
    assert named == {name.removesuffix("_text") for name in TESTED_FAMILIES}


def test_the_table_of_families_is_written_from_the_code() -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="model.md"))
    text = hooks().on_page_markdown((ROOT / "docs/model.md").read_text(), page)
    rows = {line.split(" | ")[0]: line for line in text.splitlines()}
    assert [name for name in FAMILIES if f"| {name}" not in rows] == []
    assert "inputs and outputs | normed by head | gelu_pytorch_tanh | 5 of 6 layers" in rows["| gemma3_text"]
    assert "fused" in rows["| phi3"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", page.read_text()))
    files = [link.partition("#")[0] for link in links if not link.startswith(("http", "#"))]
    assert [name for name in files if not (page.parent / name).exists()] == []


def test_pages_stay_within_their_words() -> None:
    readme = (ROOT / "README.md").read_text()
    assert (len(readme.splitlines()) <= 150, len(FENCED.sub("", readme).split()) <= 950) == (True, True)
    assert sum(len(page.read_text().split()) for page in (ROOT / "docs").rglob("*.md")) <= 20_000
