"""Checkpoints: killed runs, damaged files, and folders of other runs."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from helpers.texts import FISH, FOX
from helpers.training import run, tiny_config
from solm.core.errors import DamagedFileError, RunMismatchError
from solm.evaluation.texts import stream_of
from solm.paper.run_folder import RunFolder


@pytest.mark.parametrize("written", ["nothing", "weights", "an older policy"])
def test_killed_after_the_last_checkpoint_the_policy_is_written_again(tmp_path, byte_tokenizer, written):
    whole = run(tmp_path, "a", byte_tokenizer, updates=4)
    folder = tmp_path / "a" / "policy"
    if written == "an older policy":
        run(tmp_path, "b", byte_tokenizer, updates=2)
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "b" / "policy", folder)
    else:
        for path in folder.iterdir():
            if written == "nothing" or path.suffix != ".safetensors":
                path.unlink()
    again = run(tmp_path, "a", byte_tokenizer, updates=4)
    stored = load_file(folder / "policy.safetensors")
    assert all(torch.equal(value, again[name]) and torch.equal(value, stored[name]) for name, value in whole.items())


def test_a_folder_of_another_run_or_in_use_is_refused_and_left_alone(tmp_path, byte_tokenizer):
    run(tmp_path, "a", byte_tokenizer, updates=2)
    kept = (tmp_path / "a" / "checkpoint.safetensors").read_bytes()
    with pytest.raises(RunMismatchError, match=r"gamma: 0\.85 there, 0\.5 here"):
        run(tmp_path, "a", byte_tokenizer, gamma=0.5)
    with (
        RunFolder(tmp_path / "a", tiny_config()),
        pytest.raises(RunMismatchError, match="another process is training"),
    ):
        run(tmp_path, "a", byte_tokenizer)
    assert (tmp_path / "a" / "checkpoint.safetensors").read_bytes() == kept


def test_a_run_goes_on_with_the_text_and_weights_of_its_start_alone(tmp_path, tiny_lm):
    config, model = tiny_config(), tiny_lm.identity
    fish, fox = (stream_of([text], tiny_lm.tokenizer, "text") for text in (FISH, FOX))
    moved = model.weights.model_copy(update={"norms": (2.0, *model.weights.norms[1:])})
    elsewhere = model.weights.model_copy(update={"mlp": ()})
    with RunFolder(tmp_path / "a", config) as folder:
        folder.check_origin(model, [fish])
        folder.check_origin(model.model_copy(update={"name": "copy", "weights": elsewhere}), [fish])
        for other, texts, what in (
            (model, [fox], "another text in text"),
            (model.model_copy(update={"weights": moved}), [fish], "another model"),
            (model.model_copy(update={"layers": 3}), [fish], "another model"),
        ):
            with pytest.raises(RunMismatchError, match=f"began with {what}; choose another --out"):
                folder.check_origin(other, texts)


@pytest.mark.parametrize("damage", ["truncate", "foreign"])
def test_a_damaged_checkpoint_is_one_typed_error(tmp_path, byte_tokenizer, damage):
    from safetensors.torch import save_file

    run(tmp_path, "a", byte_tokenizer, updates=2)
    path = tmp_path / "a" / "checkpoint.safetensors"
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        save_file({"policy.x": torch.zeros(1)}, path, {"updates": "2"})
    with pytest.raises(DamagedFileError, match=r"damaged|does not fit"):
        run(tmp_path, "a", byte_tokenizer)
