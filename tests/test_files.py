"""What a full disk, a folder that cannot be written and a second process do to a run: one line, and nothing is lost."""

import json
import multiprocessing
import os
import resource
import sys

import pytest
import torch
from safetensors.torch import load_file

from solm.core.errors import DamagedFileError, RunMismatchError, SolmError
from solm.core.files import locked, read_model, resumable, write_bytes
from solm.training.config import ValueTrainConfig
from test_killed import everything_is_readable, start
from test_sweep import TEXT

TRAIN = ["--context", "100", "--horizon", "16", "--sequences", "2", "--batches", "3", "--set", "layer=1", "--set",
         "width=16", "--set", "dtype=float32", "--set", "calibration_texts=2", "--set", "calibration_horizon=16",
         "--set", "calibration_context=100"]  # fmt: skip
GRPO = ["--method", "grpo", "--space", "joint-8", "--context", "100", "--horizon", "6", "--sequences", "2",
        "--rollouts", "2", "--updates", "2", "--set", "width=16", "--set", "dtype=float32", "--set",
        "checkpoint_every=1"]  # fmt: skip
EVAL = ["--space", "mlp-40", "--budgets", "0.9,0.95", "--texts", "24", "--context", "90", "--length", "12",
        "--trials", "2", "--dtype", "float32"]  # fmt: skip


def limited(arguments, folder, most):
    """Entry of a child: the command line where no file can grow beyond `most` bytes, as on a disk that is full."""
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.argv = ["solm", *arguments]
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = open("stderr.txt", "w")  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    from solm.cli.main import main

    main()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "most", "name"),
    [
        (["train", "--out", "out", "--data", "text.txt", *TRAIN], 16_000, "out/policy/policy.safetensors"),
        (["train", "--out", "out", "--data", "text.txt", *GRPO], 20_000, "out/policy/policy.safetensors"),
        (["eval", "--data", "text.txt", "--json", "out/result.json", *EVAL], 900, "out/result.json"),
    ],
    ids=["values", "grpo", "eval"],
)
def test_a_full_disk_is_one_line_and_with_room_the_run_goes_on(arguments, most, name, tiny_folder, tmp_path):
    arguments = [*arguments, "--model", str(tiny_folder)]
    for part in ("full", "whole"):
        (tmp_path / part / "out").mkdir(parents=True)
        (tmp_path / part / "text.txt").write_text(TEXT)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["solm.cli.main", "solm.runtime.load", "solm.evaluation.sweep", "test_files"])
    process = context.Process(target=limited, args=(arguments, tmp_path / "full", most))
    process.start()
    process.join(240)
    said = [line for line in (tmp_path / "full/stderr.txt").read_text().splitlines() if line.startswith("solm: ")]
    assert process.exitcode == 2, said
    assert len(said) == 1
    assert "cannot write" in said[0]
    assert "File too large" in said[0]
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


@pytest.mark.parametrize("verb", ["train", "eval", "sweep"])
def test_a_folder_that_cannot_be_written_is_one_line(verb, tiny_folder, tmp_path, monkeypatch, capsys):
    """/proc, which nobody can write to, not even root."""
    from solm.cli.main import main

    (tmp_path / "text.txt").write_text(TEXT)
    grid = {"models": [str(tiny_folder)], "spaces": ["mlp-40"], "data": [str(tmp_path / "text.txt")], "budgets": [0.9]}
    (tmp_path / "sweep.yaml").write_text(json.dumps(grid))
    data = ["--data", str(tmp_path / "text.txt"), "--model", str(tiny_folder)]
    options = {
        "train": ["--out", "/proc/solm", *data, *TRAIN],
        "eval": ["--json", "/proc/solm/result.json", *data, *EVAL],
        "sweep": [str(tmp_path / "sweep.yaml"), "--out", "/proc/solm"],
    }[verb]
    monkeypatch.setattr(sys, "argv", ["solm", verb, *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("solm: ")]
    assert "/proc/solm" in line


def test_a_folder_is_held_by_one_process_until_it_lets_go(tmp_path):
    taken = pytest.raises(RunMismatchError, match="another process is training")
    with locked(tmp_path / "run", "training"), taken, locked(tmp_path / "run", "training"):
        pass
    with locked(tmp_path / "run", "training"):
        pass


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(SolmError, match="cannot write"):
        write_bytes(path / "below", b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    path.write_text('{"batches": ')
    with pytest.raises(DamagedFileError, match="damaged or of another version"):
        read_model(path, ValueTrainConfig)


def test_two_processes_do_not_work_on_one_result(tmp_path):
    with resumable(tmp_path / "a.json") as partial:
        assert partial == tmp_path / "a.json.partial"
        with (
            pytest.raises(RunMismatchError, match=r"another process is working on a\.json"),
            resumable(tmp_path / "a.json"),
        ):
            pass
        with resumable(tmp_path / "b.json"), resumable(None) as nothing:
            assert nothing is None
    with resumable(tmp_path / "a.json"):
        pass
