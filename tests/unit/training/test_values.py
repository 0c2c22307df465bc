"""Training of value policies: interruption, settings, and what a trained policy does."""

import json
import signal

import pytest
import torch

import solm
from helpers.models import tiny_model
from helpers.policies import SPACE, SPARSITY
from helpers.texts import FISH
from solm.core.actions import ActionSpace
from solm.core.errors import DamagedFileError, PolicyMismatchError, RunMismatchError, SolmError
from solm.core.interrupt import Interrupted
from solm.data.windows import stream_of
from solm.policies.artifact import TrainedPolicy
from solm.policies.value_network import ValueNetwork
from solm.policies.value_policy import ValueConfig, ValuePolicy
from solm.training import values
from solm.training.checkpoint import read_stored
from solm.training.config import ValueTrainConfig
from solm.training.values import LEVEL_COSTS, SAMPLES, cost_factors, read_samples, set_level_costs, train_values


def test_the_space_of_choices_is_fine_by_default_and_within_the_learned_levels():
    assert ValueTrainConfig.build({}, "test").choices == ActionSpace.preset("fine")
    assert ValueTrainConfig.build({"space": "joint-27"}, "test").choices == ActionSpace.preset("joint-27")
    assert ValueTrainConfig.build({"choose": "joint-336"}, "test").choices == ActionSpace.preset("joint-336")
    with pytest.raises(PolicyMismatchError, match=r"bits level 4 is below .* 5 to 16"):
        ValueTrainConfig.build({"space": "joint-27", "choose": "fine"}, "test")


def test_what_levels_cost_after_another_context_is_one_multiple_per_axis():
    near = [torch.tensor(costs) for costs in ([0.4, 0.1, 0.0], [1.0, 0.2, 0.0], [0.0])]
    far = [torch.tensor(costs) for costs in ([0.15, 0.1, 0.0], [2.0, 1.6, 0.0], [0.0])]
    assert cost_factors(near, far) == pytest.approx((0.5, 3, 1))
    assert cost_factors(near, [torch.zeros(3), near[1], near[2]]) == pytest.approx((0.01, 1, 1)), "never free"


def test_only_a_steps_own_part_of_attentions_cost_scales_with_sensitivity():
    made = ValueNetwork(ValueConfig(base_hidden=64, layer=1, grid=SPACE, width=16))
    with torch.no_grad():
        for costs in made.level_costs:
            costs.copy_(torch.tensor([0.5, 0.1]))
        measured = ([1.0, 0.4, 0.0], [0.8, 0.2, 0.0], [0.3, 0.05, 0.0])
        set_level_costs(made, [torch.tensor(costs) for costs in measured])
    assert made.config.attention_own == (0.5, 0.25)
    attention, mlp, bits = ValuePolicy(made, SPACE).level_costs(torch.tensor([[1.0, 1, 1], [3, 3, 3]]))
    wanted = torch.tensor([[1.0, 0.4, 0], [2.0, 0.6, 0]]).double()
    torch.testing.assert_close(attention, wanted, rtol=0, atol=1e-7)
    torch.testing.assert_close(mlp[1], 3 * mlp[0])
    torch.testing.assert_close(bits[1], 3 * bits[0])
    made.config = made.config.model_copy(update={"attention_own": ()})
    attention, *_ = ValuePolicy(made, SPACE).level_costs(torch.tensor([[1.0, 1, 1], [3, 3, 3]]))
    torch.testing.assert_close(attention[1], 3 * attention[0])


def run(
    tmp_path, name, byte_tokenizer, stop_after=None, level_costs=lambda done, total: None, **changes
) -> TrainedPolicy:
    settings = {
        "context": 60, "length": 20, "texts": 2, "layer": 1, "width": 16, "batches": 3,
        "level_cost_context": 60, "level_cost_length": 20, "level_cost_texts": 3, **changes,
    }  # fmt: skip
    config = ValueTrainConfig(dtype="float32", sparsity=SPARSITY, space=SPACE, **settings)

    def report(record):
        if record["update"] == stop_after:
            signal.raise_signal(signal.SIGINT)

    with solm.attach(tiny_model("llama", torch.float32), tokenizer=byte_tokenizer, sparsity=SPARSITY) as lm:
        return train_values(lm, config, tmp_path / name, report, level_costs=level_costs)


def test_interrupted_and_resumed_training_equals_uninterrupted(tmp_path, byte_tokenizer):
    whole = run(tmp_path, "whole", byte_tokenizer)
    with pytest.raises(Interrupted):
        run(tmp_path, "parts", byte_tokenizer, stop_after=2)
    assert not (tmp_path / "parts" / "policy").exists()
    resumed = run(tmp_path, "parts", byte_tokenizer)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name
    reused = run(tmp_path, "parts", byte_tokenizer)
    assert torch.equal(reused.network.head.weight, whole.network.head.weight)
    longer = run(tmp_path, "parts", byte_tokenizer, batches=4)
    assert not torch.equal(longer.network.head.weight, whole.network.head.weight)
    assert read_stored(tmp_path / "parts").batches == 4
    with pytest.raises(SolmError, match="another configuration"):
        run(tmp_path, "parts", byte_tokenizer, length=24)
    with pytest.raises(SolmError, match=r"fit\.held_out: 0\.1 there, 0\.4 here"):
        run(tmp_path, "parts", byte_tokenizer, fit={"held_out": 0.4})
    stored = json.loads((tmp_path / "parts" / "config.json").read_text())
    stored["fit"]["gamma"] = 0.0
    (tmp_path / "parts" / "config.json").write_text(json.dumps(stored))
    with pytest.raises(DamagedFileError, match=r"config\.json is damaged or of another version: values\.fit\.gamma: "):
        run(tmp_path, "parts", byte_tokenizer)
    with pytest.raises(SolmError, match="layer 2 is out of range: this model has layers 0 to 1"):
        run(tmp_path, "other", byte_tokenizer, layer=2)


def test_a_run_that_goes_on_learns_from_no_text_that_it_holds_out(tmp_path, byte_tokenizer):
    """With more batches others are held out: those of before are collected again, from the other part of the text."""
    run(tmp_path, "a", byte_tokenizer, batches=10)
    run(tmp_path, "a", byte_tokenizer, batches=12)
    names = sorted(path.name.removesuffix(".safetensors") for path in (tmp_path / "a" / SAMPLES).iterdir())
    assert names == [f"{batch:05d}" for batch in range(1, 10)] + ["00010", "00010-held-out"] + [
        "00011-held-out", "00012-held-out",
    ]  # fmt: skip
    longer, whole = (
        read_samples(tmp_path / "a", read_stored(tmp_path / "a")),
        run(tmp_path, "b", byte_tokenizer, batches=12),
    )
    assert len(longer.dense) == 24
    again = run(tmp_path, "a", byte_tokenizer, batches=12)
    assert torch.equal(again.network.head.weight, whole.network.head.weight)
    part = read_samples(tmp_path / "a", read_stored(tmp_path / "a"), 3)
    assert torch.equal(part.cost, torch.cat([longer.cost[:6], longer.cost[-4:]]))


def test_a_run_does_not_mix_samples_of_two_texts(tmp_path, byte_tokenizer):
    text = tmp_path / "text.txt"
    text.write_text(FISH)
    with pytest.raises(Interrupted):
        run(tmp_path, "a", byte_tokenizer, stop_after=1, data=(str(text),))
    text.write_text(FISH.replace("fish", "bird"))
    with pytest.raises(RunMismatchError, match=r"began with another text in .*text\.txt; choose another --out"):
        run(tmp_path, "a", byte_tokenizer, data=(str(text),))


def test_level_costs_are_reported_and_kept_when_they_are_interrupted(tmp_path, byte_tokenizer, monkeypatch):
    whole = run(tmp_path, "whole", byte_tokenizer, level_cost_texts=10)
    seen = []

    def interrupt(done, total):
        seen.append((done, total))
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "parts", byte_tokenizer, level_costs=interrupt, level_cost_texts=10)
    assert seen == [(0, 10), (8, 10)]
    kept = json.loads((tmp_path / "parts" / LEVEL_COSTS).read_text())["parts"]
    assert list(kept) == ["0 by 8"]
    measured = []
    expected = values.expected_costs

    def counted(session, tokens, space):
        measured.append(len(tokens))
        return expected(session, tokens, space)

    monkeypatch.setattr(values, "expected_costs", counted)
    resumed = run(tmp_path, "parts", byte_tokenizer, level_cost_texts=10)
    assert measured == [2]
    assert not (tmp_path / "parts" / LEVEL_COSTS).exists()
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name


def test_a_saved_policy_decides_as_before_in_any_space_between_its_levels(tmp_path, byte_tokenizer):
    trained = run(tmp_path, "a", byte_tokenizer)
    loaded = TrainedPolicy.from_pretrained(tmp_path / "a" / "policy")
    assert "values" in (tmp_path / "a" / "policy" / "README.md").read_text()
    hidden, before = torch.randn(2, 5, 64), torch.ones(2, 5, 3, dtype=torch.float64)
    for mine, theirs in zip(trained.policy().costs(hidden, before), loaded.policy().costs(hidden, before), strict=True):
        assert torch.equal(mine, theirs)
    assert len(loaded.with_space(ActionSpace(mlp=(0.5, 1.0))).policy().curves) == 3
    with pytest.raises(PolicyMismatchError):
        loaded.with_space(ActionSpace(mlp=(0.3, 1.0)))


def test_generation_under_a_value_policy_meets_its_budget(tmp_path, byte_tokenizer):
    trained = run(tmp_path, "a", byte_tokenizer)
    with solm.attach(tiny_model("llama", torch.float32), trained, byte_tokenizer) as lm:
        ids = stream_of(["a quick brown fox " * 20], byte_tokenizer, "fox").tokens[None, :80]
        reply = lm.generate(ids, budget="keep=0.7", max_new_tokens=100, do_sample=True, eos_token_id=-1)
        again = lm.generate(ids, budget="keep=0.7", max_new_tokens=100, do_sample=True, eos_token_id=-1)
    assert reply == again
    assert len({token.action for token in reply.tokens}) > 2
    for axis in ("attention", "mlp", "bits"):
        assert reply.compute.realised[axis] == pytest.approx(reply.compute.requested[axis], abs=0.02)


@pytest.mark.parametrize(("learned", "chosen"), [("grid", "fine"), ("cpu", "cpu-fine"), ("joint-27", "joint-27")])
def test_a_coarse_learned_space_chooses_from_its_fine_one(learned, chosen):
    assert ValueTrainConfig(space=learned).choices == ActionSpace.preset(chosen)
    assert ValueTrainConfig(space=learned, choose=learned).choices == ActionSpace.preset(learned)
