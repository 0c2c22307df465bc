"""Commands whose output cannot be written."""

import json
import sys

import pytest

from helpers.commands import SHORT_EVAL, SHORT_TRAIN
from helpers.texts import FOX as TEXT


@pytest.mark.parametrize("verb", ["train", "eval", "sweep"])
def test_a_folder_that_cannot_be_written_is_one_line(verb, tiny_folder, tmp_path, monkeypatch, capsys):
    """/proc, which nobody can write to, not even root."""
    from solm.cli.main import main

    (tmp_path / "text.txt").write_text(TEXT)
    grid = {"models": [str(tiny_folder)], "spaces": ["mlp-40"], "data": [str(tmp_path / "text.txt")], "budgets": [0.9]}
    (tmp_path / "sweep.yaml").write_text(json.dumps(grid))
    data = ["--data", str(tmp_path / "text.txt"), "--model", str(tiny_folder)]
    options = {
        "train": ["--out", "/proc/solm", *data, *SHORT_TRAIN],
        "eval": ["--out", "/proc/solm/result.json", *data, *SHORT_EVAL],
        "sweep": [str(tmp_path / "sweep.yaml"), "--out", "/proc/solm"],
    }[verb]
    monkeypatch.setattr(sys, "argv", ["solm", verb, *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("solm: ")]
    assert "/proc/solm" in line
