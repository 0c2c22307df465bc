"""Runs on a disk that is full: one line of error, and with room they go on."""

import json

import pytest
import torch
from safetensors.torch import load_file

from helpers.commands import SHORT_EVAL, SHORT_GRPO, SHORT_TRAIN, everything_is_readable, start
from helpers.texts import FOX as TEXT


@pytest.mark.parametrize(
    ("arguments", "most", "name"),
    [
        (["train", "--out", "out", "--data", "text.txt", *SHORT_TRAIN], 16_000, "out/policy/policy.safetensors"),
        (["train", "--out", "out", "--data", "text.txt", *SHORT_GRPO], 20_000, "out/policy/policy.safetensors"),
        (["eval", "--data", "text.txt", "--out", "out/result.json", *SHORT_EVAL], 4_000, "out/result.json"),
    ],
    ids=["values", "grpo", "eval"],
)
def test_a_full_disk_is_one_line_and_with_room_the_run_goes_on(arguments, most, name, tiny_folder, tmp_path):
    """most: bytes of a file; less than the file `name` needs, and room for what libraries write to standard error."""
    arguments = [*arguments, "--model", str(tiny_folder)]
    for part in ("full", "whole"):
        (tmp_path / part / "out").mkdir(parents=True)
        (tmp_path / part / "text.txt").write_text(TEXT)
    process = start(arguments, tmp_path / "full", stderr="stderr.txt", most=most)
    process.join(240)
    said = [line for line in (tmp_path / "full/stderr.txt").read_text().splitlines() if line.startswith("solm: ")]
    assert process.exitcode == 2, said
    *before, error = said
    assert before == ["solm: torch float32, 1 thread"]
    assert "cannot write" in error
    assert "File too large" in error
    assert not (tmp_path / "full" / name).exists()
    everything_is_readable(tmp_path / "full/out")
    for part in ("full", "whole"):
        again = start(arguments, tmp_path / part)
        again.join(240)
        assert again.exitcode == 0
    found = [tmp_path / part / name for part in ("full", "whole")]
    if name.endswith(".json"):
        first, second = (json.loads(path.read_text())["points"] for path in found)
        assert first == second
        return
    first, second = map(load_file, found)
    assert all(torch.equal(first[key], second[key]) for key in first)
