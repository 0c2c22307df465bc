"""Training by GRPO: interrupted and resumed runs equal uninterrupted ones, and folders keep to one run."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.texts import FISH, FOX
from helpers.training import run, tiny_config
from solm.core.errors import DamagedFileError, RunMismatchError
from solm.evaluation.texts import stream_of
from solm.paper.run_folder import Run, run_folder


def test_interrupted_and_resumed_equals_uninterrupted_bitwise(tmp_path, byte_tokenizer):
    whole = run(tmp_path, "whole", byte_tokenizer)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "parts", byte_tokenizer, stop_after=3)
    resumed = run(tmp_path, "parts", byte_tokenizer)
    assert any((value != 0).any() for name, value in whole.items() if name == "head.weight")
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    logs = [
        [json.loads(line)["update"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert logs == [[1, 2, 3, 4]] * 2


def test_training_may_be_extended_and_a_finished_run_writes_its_policy_again(tmp_path, byte_tokenizer):
    short = run(tmp_path, "a", byte_tokenizer, updates=2)
    shutil.rmtree(tmp_path / "a" / "policy")
    again = run(tmp_path, "a", byte_tokenizer, updates=2)
    stored = load_file(tmp_path / "a" / "policy" / "policy.safetensors")
    assert all(torch.equal(value, again[name]) and torch.equal(value, stored[name]) for name, value in short.items())
    longer = run(tmp_path, "a", byte_tokenizer, updates=4, epochs=1)
    whole = run(tmp_path, "b", byte_tokenizer, updates=4)
    assert all(torch.equal(value, longer[name]) for name, value in whole.items())


def test_a_folder_of_another_run_or_in_use_is_refused_and_left_alone(tmp_path, byte_tokenizer, tiny_lm):
    run(tmp_path, "a", byte_tokenizer, updates=2)
    kept = (tmp_path / "a" / "checkpoint.safetensors").read_bytes()
    with pytest.raises(RunMismatchError, match=r"gamma: 0\.85 there, 0\.5 here"):
        run(tmp_path, "a", byte_tokenizer, gamma=0.5)
    fish, fox = (stream_of([text], tiny_lm.tokenizer, "text").fingerprint for text in (FISH, FOX))
    mine = Run(config=tiny_config(), model=tiny_lm.identity, text=(fish,))
    moved = mine.model.weights.model_copy(update={"norms": (2.0, *mine.model.weights.norms[1:])})
    with run_folder(tmp_path / "b", mine):
        pass
    for changes, what in (
        ({"text": (fox,)}, "another text"),
        ({"model": mine.model.model_copy(update={"weights": moved})}, "another model"),
    ):
        with pytest.raises(RunMismatchError, match=what), run_folder(tmp_path / "b", mine.model_copy(update=changes)):
            pass
    with (
        run_folder(tmp_path / "b", mine),
        pytest.raises(RunMismatchError, match="another process is training"),
        run_folder(tmp_path / "b", mine),
    ):
        pass
    assert (tmp_path / "a" / "checkpoint.safetensors").read_bytes() == kept


@pytest.mark.parametrize("damage", ["truncate", "foreign"])
def test_a_damaged_checkpoint_is_one_typed_error(tmp_path, byte_tokenizer, damage):
    run(tmp_path, "a", byte_tokenizer, updates=2)
    path = tmp_path / "a" / "checkpoint.safetensors"
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        save_file({"policy.x": torch.zeros(1)}, path, {"log": "[]"})
    with pytest.raises(DamagedFileError, match=r"damaged|does not fit"):
        run(tmp_path, "a", byte_tokenizer)
