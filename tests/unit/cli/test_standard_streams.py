"""Standard input and output that cannot be used: one line, and an exit code."""

import errno
import io
import os
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


class Full(io.RawIOBase):
    """A file on a full disk."""

    def writable(self) -> bool:
        return True

    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_output_that_is_full(generate, monkeypatch, more, buffered):
    raw = Full()
    monkeypatch.setattr(
        sys, "stdout", io.TextIOWrapper(io.BufferedWriter(raw) if buffered else raw, write_through=True)
    )
    code, said = generate("x", *more)
    assert code == 2
    assert said.endswith("\nsolm: cannot write the output: No space left on device\n")
