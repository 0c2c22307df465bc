"""Several processes train what one does: torchrun on the CPU, real collectives, the command as a user types it."""

import json

import pytest
import torch
from safetensors.torch import load_file

from helpers.commands import GRPO, VALUES, train
from solm.core.errors import SolmError
from solm.training.ranks import Ranks


def test_collected_samples_and_policy_do_not_depend_on_the_number_of_processes(tiny_folder, tmp_path):
    def same(name):
        one, two = (load_file(tmp_path / run / name) for run in ("one", "two"))
        return all(torch.equal(one[key], two[key]) for key in one)

    train(1, tiny_folder, tmp_path / "one", *VALUES, "--batches", 5)
    train(2, tiny_folder, tmp_path / "two", *VALUES, "--batches", 5)
    names = sorted(path.name for path in (tmp_path / "one/samples").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two/samples").iterdir())
    assert len(names) == 5
    assert all(same(f"samples/{name}") for name in names)
    assert same("policy/policy.safetensors")
    for run in ("one", "two"):  # one process continues what two began
        train(1, tiny_folder, tmp_path / run, "--batches", 6)
    assert same("policy/policy.safetensors")


@pytest.mark.slow
def test_policy_gradient_follows_one_trajectory_whatever_the_number_of_processes(tiny_folder, tmp_path):
    train(1, tiny_folder, tmp_path / "one", *GRPO, "--updates", 4)
    train(2, tiny_folder, tmp_path / "two", *GRPO, "--updates", 2)
    train(1, tiny_folder, tmp_path / "two", "--updates", 3)
    train(2, tiny_folder, tmp_path / "two", "--updates", 4)
    logs = [
        [json.loads(line) for line in (tmp_path / run / "log.jsonl").read_text().splitlines()] for run in ("one", "two")
    ]
    assert [len(log) for log in logs] == [4, 4]
    for mine, theirs in zip(*logs, strict=True):
        for name in ("reward", "realised_net", "penalty", "entropy", "gradient_norm"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-4, abs=1e-6), (mine["update"], name)
    one, two = (load_file(tmp_path / run / "policy/policy.safetensors") for run in ("one", "two"))
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=2e-5, rtol=1e-4)


def test_numbers_that_ranks_cannot_share_are_refused():
    assert Ranks(1, 2).share(4) == slice(2, 4)
    with pytest.raises(SolmError, match="3 texts per update cannot be shared evenly by 2 processes"):
        Ranks(0, 2).share(3)
