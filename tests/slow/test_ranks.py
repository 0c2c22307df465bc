"""Training under accelerate."""

import torch
from safetensors.torch import load_file

from helpers.commands import VALUES, train


def test_accelerate_launches_as_torchrun_does(tiny_folder, tmp_path):
    train(1, tiny_folder, tmp_path / "one", *VALUES, "--batches", 2)
    train(2, tiny_folder, tmp_path / "two", *VALUES, "--batches", 2, launcher="accelerate")
    samples = sorted(path.name for path in (tmp_path / "one/samples").iterdir())
    assert samples == sorted(path.name for path in (tmp_path / "two/samples").iterdir())
    assert len(samples) == 2
    for name in (*(f"samples/{name}" for name in samples), "policy/policy.safetensors"):
        one, two = (load_file(tmp_path / run / name) for run in ("one", "two"))
        assert all(torch.equal(one[key], two[key]) for key in one)
