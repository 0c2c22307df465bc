"""Help pages: every command has examples, each of which parses, and pages have no gaps."""

import re
import shlex
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from solm.cli.eval import lm_eval
from solm.cli.main import app

GROUP: Any = typer.main.get_command(app)


def context_of(words: list[str]) -> Any:
    """The context that parsing `words`, what follows ``solm``, ends in. Nothing runs."""
    command, name = GROUP, "solm"
    context = command.make_context(name, list(words))
    while hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        if not rest:
            return context
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
    return context


def pages() -> dict[str, str]:
    """The help page of every command by its name; that of ``solm`` itself under the empty name."""
    names = ["", *GROUP.list_commands(None)]
    names.remove("lm-eval")  # its page is another program's
    runner, wide = CliRunner(), {"COLUMNS": "110", "TERM": "dumb"}
    return {name: runner.invoke(app, [*name.split(), "--help"], env=wide).stdout for name in names}


PAGES = pages() | {"lm-eval": str(lm_eval.__doc__).replace("    \b\n    ", "  ")}


def examples(page: str) -> list[list[str]]:
    """The arguments of every command under Example or Examples, continued lines joined."""
    _, _, shown = page.rpartition("\n  Example")
    shown = re.sub(r"\\\s*\n\s*", " ", shown.partition("\n\n")[0])
    parts = [part for line in shown.splitlines()[1:] for part in line.split(" | ")]
    calls = [re.search(r"(?:^|\s)(?:solm|-m solm\.cli) (.*)", part) for part in parts]
    return [shlex.split(call[1]) for call in calls if call]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_examples_that_parse_and_no_gaps(name):
    page = PAGES[name]
    assert "\n\n\n" not in page
    assert not re.search(r"\n\n(?!Options|Arguments|Commands|  )", page), "lines between options"
    assert max(map(len, page.splitlines())) <= 120
    found = examples(page)
    assert found
    for words in found:
        context = context_of(words)
        assert context.info_name == words[0]
        assert not context.args or words[0] == "lm-eval"
    assert any(" ".join(words).startswith(name) for words in found)
