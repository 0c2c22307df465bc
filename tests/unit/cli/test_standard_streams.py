"""Standard input and output that cannot be used: one line, and an exit code."""

import io
import sys

import pytest

from solm.cli.main import main


@pytest.fixture
def generate(tiny_folder, monkeypatch, capsys):
    """The command; returns its exit code and what it says."""

    def run(*arguments: str) -> tuple[int, str]:
        options = ["--model", str(tiny_folder), "--backend", "torch", "--max-new-tokens", "2"]
        monkeypatch.setattr(sys, "argv", ["solm", "generate", *options, *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize("arguments", [["-"], ["abc\udcff"]])
def test_a_prompt_that_is_not_utf8(generate, monkeypatch, arguments):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"abc\xff"), "utf-8"))
    expected = "solm: PROMPT: the prompt is not valid Unicode text (UTF-8) at character 3\n"
    assert generate(*arguments) == (2, expected)
