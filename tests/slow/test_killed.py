"""kill -9, fifty times at random moments: nothing half-written is ever seen, and the end is what it would have been."""

import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file

from helpers.commands import everything_is_readable, start
from helpers.texts import FOX as TEXT

KILLS = 17
TRAIN = ["--context", "100", "--length", "16", "--texts", "2", "--seed", "3", "--batches", "14",
         "--set", "layer=1", "--set", "width=16", "--set", "dtype=float32", "--set", "level_cost_texts=2",
         "--set", "level_cost_length=16", "--set", "level_cost_context=100"]  # fmt: skip
EVAL = ["--space", "joint-8", "--budgets", "0.6,0.7,0.8", "--texts", "24", "--context", "90", "--length", "12",
        "--trials", "4", "--dtype", "float32"]  # fmt: skip


@pytest.mark.parametrize("verb", ["train", "eval", "sweep"])
def test_killed_at_random_moments_it_always_goes_on(verb, tiny_folder, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT * 3)
    grid = {
        "models": [str(tiny_folder)], "spaces": ["mlp-40", "bits-5"], "data": ["text.txt"], "budgets": [0.9, 0.95],
        "texts": 8, "context": 90, "length": 12, "trials": 2,
    }  # fmt: skip
    arguments = {
        "train": ["train", "--model", str(tiny_folder), "--out", "out", "--data", "text.txt", *TRAIN],
        "eval": ["eval", "--model", str(tiny_folder), "--data", "text.txt", "--out", "out/result.json", *EVAL],
        "sweep": ["sweep", "sweep.yaml", "--out", "out"],
    }[verb]

    def fresh(name):
        folder = tmp_path / name
        (folder / "out").mkdir(parents=True)
        shutil.copy(tmp_path / "text.txt", folder)
        (folder / "sweep.yaml").write_text(json.dumps(grid))
        return folder

    whole = fresh("whole")
    reference = start(arguments, whole)
    reference.join(120)
    assert reference.exitcode == 0
    rng, kills, folder, rounds = random.Random(0), 0, fresh("killed-0"), 0
    while kills < KILLS:
        process = start(arguments, folder)
        process.join(rng.uniform(0.3, 2.5))
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
            everything_is_readable(folder / "out")
            continue
        assert process.exitcode == 0
        rounds += 1
        folder = fresh(f"killed-{rounds}")
    last = start(arguments, folder)
    last.join(120)
    assert last.exitcode == 0
    if verb == "train":
        one, two = (load_file(root / "out/policy/policy.safetensors") for root in (whole, folder))
        assert all(torch.equal(one[name], two[name]) for name in one)
        return
    name = "result.json" if verb == "eval" else "results.jsonl"
    results = [(root / "out" / name).read_text() for root in (whole, folder)]
    points = [
        [json.loads(line)["points"] for line in (text.splitlines() if verb == "sweep" else [text])] for text in results
    ]
    assert points[0] == points[1]
