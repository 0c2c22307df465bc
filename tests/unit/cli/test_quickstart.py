"""Interrupting the quickstart: what is finished is kept, and the line says how to go on."""

import sys

import pytest

from solm.cli import quickstart
from solm.cli.main import main


def test_an_interrupt_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def decode(report):
        report("decoding", 0, 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart, "decode", decode)
    monkeypatch.setattr(sys, "argv", ["solm", "quickstart", "--out", str(tmp_path), "--threads", "1"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("1. One prompt")
    assert (
        lines[-1]
        == f"interrupted; finished parts are kept. Continue with: solm quickstart --out {tmp_path} --threads 1"
    )
