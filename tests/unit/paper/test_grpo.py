"""Training by GRPO: interrupted and resumed runs equal uninterrupted ones."""

import json

import pytest
import torch

from helpers.texts import FISH
from helpers.training import run
from solm.core.errors import RunMismatchError
from solm.paper import grpo


def test_interrupted_and_resumed_equals_uninterrupted_bitwise(tmp_path, byte_tokenizer):
    from solm.core.interrupt import Interrupted

    whole = run(tmp_path, "whole", byte_tokenizer)
    with pytest.raises(Interrupted) as stopped:
        run(tmp_path, "parts", byte_tokenizer, stop_after=3)
    assert stopped.value.exit_code == 130
    resumed = run(tmp_path, "parts", byte_tokenizer)
    assert any((value != 0).any() for name, value in whole.items() if name == "head.weight")
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    logs = [
        [json.loads(line)["update"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert logs == [[1, 2, 3, 4]] * 2


def test_training_may_be_extended_and_a_finished_run_is_reused(tmp_path, byte_tokenizer):
    short = run(tmp_path, "a", byte_tokenizer, updates=2)
    again = run(tmp_path, "a", byte_tokenizer, updates=2)
    assert all(torch.equal(value, again[name]) for name, value in short.items())
    longer = run(tmp_path, "a", byte_tokenizer, updates=4)
    whole = run(tmp_path, "b", byte_tokenizer, updates=4)
    assert all(torch.equal(value, longer[name]) for name, value in whole.items())


def test_half_an_update_is_not_saved(tmp_path, byte_tokenizer, monkeypatch):
    whole, calls, optimise = run(tmp_path, "whole", byte_tokenizer), [], grpo.optimise

    def fail_in_the_fourth(*given):
        calls.append(optimise(*given))
        if len(calls) == 4:
            raise MemoryError
        return calls[-1]

    monkeypatch.setattr(grpo, "optimise", fail_in_the_fourth)
    with pytest.raises(MemoryError):
        run(tmp_path, "parts", byte_tokenizer)
    resumed = run(tmp_path, "parts", byte_tokenizer)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_run_does_not_go_on_with_another_text(tmp_path, byte_tokenizer):
    text = tmp_path / "text.txt"
    text.write_text(FISH)
    run(tmp_path, "a", byte_tokenizer, updates=2, data=str(text))
    text.write_text(FISH.replace("fish", "bird"))
    for updates in (2, 4):
        with pytest.raises(RunMismatchError, match=r"began with another text in .*text\.txt; choose another --out"):
            run(tmp_path, "a", byte_tokenizer, updates=updates, data=str(text))


def test_the_number_of_passes_per_update_changes_nothing(tmp_path, byte_tokenizer):
    """Policies within 1e-5 after two updates of two epochs each: only the order of float sums differs."""
    whole = run(tmp_path, "whole", byte_tokenizer, updates=2, epochs=2)
    in_parts = run(tmp_path, "parts", byte_tokenizer, updates=2, epochs=2, accumulate=3)
    for name, value in whole.items():
        gap = (in_parts[name] - value).abs()
        if name == "qkv.bias":
            # A softmax does not see the keys' bias: its gradient is rounding noise, which Adam makes steps of.
            gap.view(3, -1)[1] = 0
        assert gap.max() < 1e-5, name
    once = run(tmp_path, "once", byte_tokenizer, updates=1, epochs=2)
    assert any((value - once[name]).abs().max() > 1e-3 for name, value in whole.items())


def test_a_run_is_not_finished_with_fewer_updates_than_it_has_had(tmp_path, byte_tokenizer):
    run(tmp_path, "a", byte_tokenizer, updates=3)
    with pytest.raises(RunMismatchError, match="is after 3 updates already; 2 are asked for"):
        run(tmp_path, "a", byte_tokenizer, updates=2)
