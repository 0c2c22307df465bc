"""Runs on a disk that is full: one line of error, and with room they go on."""

import json

from helpers.commands import SHORT_EVAL, everything_is_readable, start
from helpers.texts import FOX as TEXT

MOST = 4_000
"""Bytes of a file; less than the result needs, and room for what libraries write to standard error."""


def test_a_full_disk_is_one_line_and_with_room_the_run_goes_on(tiny_folder, tmp_path):
    arguments = ["eval", "--data", "text.txt", "--out", "out/result.json", *SHORT_EVAL, "--model", str(tiny_folder)]
    for part in ("full", "whole"):
        (tmp_path / part / "out").mkdir(parents=True)
        (tmp_path / part / "text.txt").write_text(TEXT)
    process = start(arguments, tmp_path / "full", stderr="stderr.txt", most=MOST)
    process.join(240)
    said = [line for line in (tmp_path / "full/stderr.txt").read_text().splitlines() if line.startswith("solm: ")]
    assert process.exitcode == 2, said
    *before, error = said
    assert before == ["solm: torch float32, 1 thread"]
    assert "cannot write" in error
    assert "File too large" in error
    assert not (tmp_path / "full/out/result.json").exists()
    everything_is_readable(tmp_path / "full/out")
    for part in ("full", "whole"):
        again = start(arguments, tmp_path / part)
        again.join(240)
        assert again.exitcode == 0
    first, second = (
        json.loads((tmp_path / part / "out/result.json").read_text())["points"] for part in ("full", "whole")
    )
    assert first == second
