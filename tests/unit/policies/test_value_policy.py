"""Value policies: prices meet budgets, decisions in mid-pass, regression, training and its interruption."""

import json
import signal

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import solm
from helpers.models import CONTEXT, STEPS, tiny_model, tokens
from helpers.policies import SPACE, SPARSITY, network
from helpers.sessions import scored_under
from solm.backends.session import SplitSchedule
from solm.backends.torch.backend import TorchBackend
from solm.core.actions import ActionSpace
from solm.core.budget import Ledger
from solm.core.errors import DamagedFileError, PolicyMismatchError, SolmError
from solm.core.sparsity import SparsityConfig
from solm.data.windows import stream_of
from solm.policies.artifact import TrainedPolicy
from solm.policies.priced import PriceCurve
from solm.policies.value_policy import ValueConfig, ValueNetwork, ValuePolicy, costs_between, known_levels
from solm.training.checkpoint import read_stored
from solm.training.config import FitConfig, ValueTrainConfig
from solm.training.counterfactual import Samples, collect_samples, draw_levels, keep_of
from solm.training.interrupt import Interrupted
from solm.training.regression import fit
from solm.training.values import set_level_costs, train_values

# Turns


def test_a_turn_sees_the_layers_input_and_governs_the_layers_after_it(family):
    model, ids = tiny_model(family), tokens(2, CONTEXT + STEPS + 1)
    states = model(ids[:, :-1], output_hidden_states=True, use_cache=False).hidden_states
    dense, low = (torch.tensor(a, dtype=torch.float64).expand(2, STEPS, 3) for a in ((1, 1, 16.0), (0.3, 0.5, 5.0)))
    control = TorchBackend(model)
    session = control.session(SPARSITY)
    session.prefill(ids[:, :CONTEXT])
    mixed = session.fork(1).score(ids[:, CONTEXT:], SplitSchedule(1, dense, low))
    torch.testing.assert_close(mixed.stream, states[1][:, CONTEXT:], rtol=1e-4, atol=1e-5)
    whole = session.fork(1).score(ids[:, CONTEXT:], low)
    torch.testing.assert_close(mixed.realised, (1 + whole.realised) / 2)
    assert (mixed.log_probabilities != whole.log_probabilities).any()
    from_the_start = session.fork(1).score(ids[:, CONTEXT:], SplitSchedule(0, dense, low))
    torch.testing.assert_close(from_the_start.log_probabilities, whole.log_probabilities, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(from_the_start.realised, whole.realised)
    nothing = session.fork(1).score(ids[:, CONTEXT:], SplitSchedule(1, low, low))
    assert torch.equal(nothing.log_probabilities, whole.log_probabilities)
    control.detach()


@pytest.mark.parametrize("layer", [0, 1])
def test_deciding_in_one_pass_equals_deciding_step_by_step(layer):
    with solm.attach(tiny_model("llama"), sparsity=SPARSITY) as lm:
        ids = tokens(3, CONTEXT + STEPS + 1)
        target = torch.tensor([[0.6, 0.7, 0.5], [0.5, 0.5, 0.4], [0.9, 0.9, 0.9]], dtype=torch.float64)
        policy = ValuePolicy(network(layer).double(), SPACE)
        session = lm.session()
        session.prefill(ids[:, :CONTEXT])
        whole = scored_under(session.fork(1), policy, ids[:, CONTEXT:], target)
        stepped = session.fork(1)
        stepped.control(policy, target, STEPS)
        logits, taken = [], []
        for step in range(STEPS):
            found = stepped.step(ids[:, CONTEXT + step])
            logits.append(found.logits[:, 0].log_softmax(-1).gather(1, ids[:, CONTEXT + step + 1, None])[:, 0])
            taken.append(found.actions)
        assert torch.equal(torch.cat(taken, 1), whole.actions)
        assert len(whole.actions.unique()) > 3
        torch.testing.assert_close(torch.stack(logits, 1).float(), whole.log_probabilities)
        torch.testing.assert_close(stepped.ledger.spent, whole.realised.sum(1))


# Prices


def test_the_price_of_a_share_makes_known_tokens_spend_it():
    generator = torch.Generator().manual_seed(0)
    steep = torch.rand(4000, 1, generator=generator)
    shares = torch.tensor([0.4, 0.6, 0.8, 1.0], dtype=torch.float64)
    costs = steep * torch.tensor([1.0, 0.4, 0.1, 0.0])
    curve = PriceCurve(costs, shares)
    for wanted in (0.45, 0.6, 0.75, 0.9):
        price = curve.price(np.array([wanted]))
        assert float(shares[(costs + price[0] * shares).argmin(-1)].mean()) == pytest.approx(wanted, abs=0.02)
        assert curve.share(float(price[0])) == pytest.approx(wanted, abs=0.02)
    beyond = curve.price(np.array([0.1, 1.5]))
    assert (float(beyond[0]), float(beyond[1])) == (pytest.approx(10**1.5), 0)


def shares_of(space: ActionSpace, rows: int) -> tuple[torch.Tensor, ...]:
    """Per axis the nominal shares [rows, levels]."""
    axes = (space.attention, space.mlp, [bits / 16 for bits in space.bits])
    return tuple(torch.tensor(axis, dtype=torch.float64).expand(rows, -1) for axis in axes)


def allocate(policy, costs, levels, target, ledger, remaining) -> torch.Tensor:
    arrays = ([axis.numpy() for axis in axes] for axes in (costs, levels))
    budget = (part.numpy() for part in (target, ledger.spent, ledger.steps))
    return torch.from_numpy(policy.allocate(*arrays, *budget, remaining))


@pytest.mark.parametrize("horizon", [16, 128])
@pytest.mark.parametrize("shares", [(0.3, 0.5, 0.4), (0.5, 0.7, 0.5), (0.8, 0.9, 0.7)])
def test_every_row_meets_its_budget_and_saves_where_it_costs_least(shares, horizon):
    policy = ValuePolicy(network(), SPACE)
    target = torch.tensor([shares] * 8, dtype=torch.float64)
    ledger, generator = Ledger.empty(8), torch.Generator().manual_seed(1)
    levels, costs = [], []
    for step in range(horizon):
        predicted = policy.costs(torch.randn(8, 1, 64, generator=generator), SPACE.table[-1].expand(8, 1, 3))
        action = allocate(policy, tuple(axis[:, 0] for axis in predicted), shares_of(SPACE, 8), target, ledger, horizon - step)
        share = SPACE.table[action] / torch.tensor([1, 1, 16])
        ledger = ledger.book(share, torch.ones(8, dtype=torch.bool))
        levels.append(torch.unravel_index(action, SPACE.shape)[1])
        costs.append(predicted.mlp[:, 0])
    # The coarsest level gap is 0.5625 bits-share: half of it is left over at worst, once, at the end.
    assert (ledger.average - target).abs().max() <= max(0.002, 0.6 * 0.5625 / horizon)
    levels, costs = torch.cat(levels), torch.cat(costs)
    shuffled = levels[torch.randperm(len(levels), generator=generator)]
    ours, theirs = (costs.gather(1, choice[:, None]).mean() for choice in (levels, shuffled))
    assert ours < theirs


def test_a_net_keep_is_split_at_one_price():
    cheap = ValueNetwork(ValueConfig(base_hidden=64, layer=1, grid=SPACE, width=16))
    noise = 1 + 0.3 * torch.rand(len(cheap.training_sensitivities), 1, generator=torch.Generator().manual_seed(0))
    # Attention costs ten times as much as the MLP, bits nothing.
    cheap.training_sensitivities.copy_(noise.expand(-1, 3))
    with torch.no_grad():
        for known, costs in zip(cheap.level_costs, ([1.0, 0.4], [0.1, 0.04], [0.0, 0.0]), strict=True):
            known.copy_(torch.tensor(costs))
    budget = ValuePolicy(cheap, SPACE).split(0.6)
    assert budget.net == pytest.approx(0.6, abs=1e-6)
    assert budget.attention > budget.mlp > budget.bits / 16 == 5 / 16


def test_levels_between_those_learned_cost_what_convex_costs_would_and_others_are_refused():
    grid = ActionSpace(mlp=(0.4, 0.8, 1.0), bits=(4, 8, 16))
    (_, mlp, bits) = known_levels(grid, ActionSpace(mlp=(0.4, 0.6, 0.8, 0.9, 1.0), bits=(4, 6, 16)))
    found = costs_between(mlp[0], np.array([1.0, 0.01]), mlp[1])
    np.testing.assert_allclose(found, [1, 0.1, 0.01, 0.0025, 0], atol=1e-12)
    slopes = np.diff(found) / np.diff(mlp[1])
    assert (np.diff(slopes) >= 0).all()  # convex
    np.testing.assert_allclose(costs_between(bits[0], np.array([0.4, 0.0]), bits[1])[[0, 2]], [0.4, 0])
    with pytest.raises(PolicyMismatchError, match=r"mlp level 0\.3 is below .* 0\.4 to 1"):
        known_levels(grid, ActionSpace(mlp=(0.3, 1.0)))


def test_what_is_chosen_among_is_fine_by_default_and_lies_between_the_levels_learned():
    assert ValueTrainConfig.build({}, "test").choices == ActionSpace.preset("fine")
    assert ValueTrainConfig.build({"space": "joint-27"}, "test").choices == ActionSpace.preset("joint-27")
    assert ValueTrainConfig.build({"choose": "joint-336"}, "test").choices == ActionSpace.preset("joint-336")
    with pytest.raises(PolicyMismatchError, match=r"bits level 4 is below .* 5 to 16"):
        ValueTrainConfig.build({"space": "joint-27", "choose": "fine"}, "test")


def test_only_what_a_step_bears_itself_of_attentions_cost_follows_its_sensitivity():
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


@pytest.mark.parametrize(("own", "message"), [((0.5,), "needs 2 parts"), ((0.5, 1.5), "between 0 and 1")])
def test_parts_that_cannot_be_are_refused(own, message):
    with pytest.raises(ValidationError, match=message):
        ValueConfig(base_hidden=64, layer=1, grid=SPACE, attention_own=own)


@pytest.mark.parametrize("floor", [0.4, 0.62], ids=["in proportion", "some of it always"])
def test_a_fine_space_is_used_between_the_levels_that_were_learned(floor):
    """With average sensitivities alone a policy takes the levels next to the average, whatever a level realises."""
    fine = ActionSpace(mlp=tuple(percent / 100 for percent in range(40, 101, 5)))
    plain = ValueNetwork(ValueConfig(base_hidden=64, layer=1, grid=ActionSpace(mlp=(0.4, 0.6, 0.8, 1.0)), width=16))
    with torch.no_grad():
        plain.level_costs[1].copy_(torch.tensor([1.0, 0.2, 0.03]))
    policy = ValuePolicy(plain, fine)
    shares = torch.tensor([fine.mlp], dtype=torch.float64).clamp(min=floor)
    one, target = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[1.0, 0.68, 1.0]], dtype=torch.float64)
    ledger, taken = Ledger.empty(1), []
    for step in range(64):
        costs = (one * 0, policy.own_cost.mlp[None], one * 0)
        taken.append(int(allocate(policy, costs, (one, shares, one), target, ledger, 64 - step)))
        spent = float(shares[0, taken[-1]])
        ledger = ledger.book(torch.tensor([[1.0, spent, 1.0]], dtype=torch.float64), torch.tensor([True]))
    assert {fine.mlp[level] for level in taken[:-4]} == {0.65, 0.7}
    assert float(ledger.average[0, 1]) == pytest.approx(0.68, abs=0.002)


# Samples and regression


def test_drawn_levels_vary_one_axis_or_all_and_cover_every_budget():
    before, after = draw_levels(SPACE, 400, 3, 64, torch.Generator().manual_seed(0))
    varied = (after != torch.tensor(SPACE.shape) - 1).any(2).sum(-1)
    assert set(varied.unique().tolist()) == {1, 3}
    assert 0.15 < float((varied == 3).float().mean()) < 0.35
    means = after[varied == 3].double().mean(1) / 2
    assert means.min() < 0.2
    assert means.max() > 0.8
    assert not torch.equal(before, after)


def test_samples_are_differences_to_the_dense_run_of_the_same_tokens():
    with solm.attach(tiny_model("llama"), sparsity=SPARSITY) as lm:
        ids = tokens(2, CONTEXT + STEPS + 1)
        before, after = draw_levels(SPACE, 2, 3, STEPS, torch.Generator().manual_seed(0))
        got = collect_samples(lm, ids, CONTEXT, 1, before, after, SPACE)
        session = lm.session()
        session.prefill(ids[:, :CONTEXT])
        dense = session.fork(1).score(ids[:, CONTEXT:], torch.tensor((1.0, 1, 16)).expand(2, STEPS, 3))
        torch.testing.assert_close(got.dense, dense.log_probabilities)
        first, second = keep_of(before, SPACE).flatten(0, 1), keep_of(after, SPACE).flatten(0, 1)
        alone = session.fork(3).score(ids[:, CONTEXT:].repeat_interleave(3, 0), SplitSchedule(1, first, second))
        expected = dense.log_probabilities[:, None] - alone.log_probabilities.view(2, 3, -1)
        torch.testing.assert_close(got.cost, expected.float(), rtol=1e-4, atol=1e-5)
        logits = [
            session.fork(forks)
            .extend(ids[:, CONTEXT:-1].repeat_interleave(forks, 0), keep)
            .logits.log_softmax(-1)
            for forks, keep in (
                (1, torch.tensor((1.0, 1, 16)).expand(2, STEPS, 3)),
                (3, SplitSchedule(1, first, second)),
            )
        ]
        expected = (logits[0].exp() * (logits[0] - logits[1].unflatten(0, (2, 3)).transpose(0, 1))).sum(-1)
        torch.testing.assert_close(got.divergence, expected.transpose(0, 1).float(), rtol=1e-3, atol=1e-5)
        assert torch.equal(got.tokens, ids[:, CONTEXT:-1].to(torch.int32))
        assert got.hidden.shape == (2, 3, STEPS, 64)


def planted(noise: float) -> Samples:
    """Costs of which one direction of the hidden state says what the MLP's levels cost; divergences vary by a factor,
    as costs do by what token came."""
    generator = torch.Generator().manual_seed(0)
    before, after = draw_levels(SPACE, 120, 3, 64, generator)
    hidden = torch.randn(120, 3, 64, 64, generator=generator)
    need = torch.sigmoid(2 * hidden[..., 0])
    cost = torch.tensor([1.0, 0.3, 0.0])[after[..., 1].long()] * need
    came = cost - noise * torch.randn(cost.shape, generator=generator)
    divergence = cost * 2 * torch.rand(cost.shape, generator=generator)
    return Samples(
        hidden.bfloat16(), before, after, came, divergence, torch.zeros(120, 64),
        torch.zeros(120, 64, dtype=torch.int32),
    )  # fmt: skip


def test_regression_finds_what_is_there_and_little_where_nothing_is():
    config = ValueConfig(base_hidden=64, layer=1, grid=SPACE, width=32)
    network, found = fit(planted(noise=1), config, FitConfig(batch=512, dropout=0.1))
    assert found.explained[-1] > 0.2
    # Sensitivities are 1 on average; the costs are the planted ones, on the planted axis alone.
    torch.testing.assert_close(network.training_sensitivities.float().mean(0), torch.ones(3), rtol=0, atol=0.05)
    costs = [axis.detach() for axis in network.level_costs]
    assert float(costs[1][0]) == pytest.approx(0.5, abs=0.1)
    assert float(costs[0][0]) == pytest.approx(0, abs=0.1)
    nothing = planted(noise=1)
    nothing.divergence.copy_(torch.rand(nothing.cost.shape, generator=torch.Generator().manual_seed(3)))
    assert fit(nothing, config, FitConfig(epochs=2, batch=512))[1].explained[-1] < 0.01


def test_trust_in_the_network_is_what_held_out_costs_support():
    config = ValueConfig(base_hidden=64, layer=1, grid=SPACE, width=32)
    network, found = fit(planted(noise=1), config, FitConfig(batch=512, dropout=0.1))
    assert found.slopes[1] == pytest.approx(1, abs=0.25)
    assert float(network.trust[1]) == pytest.approx(min(found.slopes[1], 1))
    luck = planted(noise=1)
    order = torch.randperm(luck.cost.numel(), generator=torch.Generator().manual_seed(4))
    luck.cost.copy_(luck.cost.flatten()[order].view(luck.cost.shape))
    network, found = fit(luck, config, FitConfig(batch=512, dropout=0.1))
    assert float(network.trust[1]) < 0.4


# Training


def run(tmp_path, name, byte_tokenizer, stop_after=None, **changes) -> TrainedPolicy:
    settings = {
        "context": 60, "length": 20, "texts": 2, "layer": 1, "width": 16, "batches": 3,
        "level_cost_context": 60, "level_cost_length": 20, "level_cost_texts": 3, **changes,
    }  # fmt: skip
    config = ValueTrainConfig(dtype="float32", sparsity=SPARSITY, space=SPACE, **settings)

    def report(record):
        if record["update"] == stop_after:
            signal.raise_signal(signal.SIGINT)

    with solm.attach(tiny_model("llama", torch.float32), tokenizer=byte_tokenizer, sparsity=SPARSITY) as lm:
        return train_values(lm, config, tmp_path / name, report)


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
    stored = json.loads((tmp_path / "parts" / "config.json").read_text())
    stored["fit"]["gamma"] = 0.0
    (tmp_path / "parts" / "config.json").write_text(json.dumps(stored))
    with pytest.raises(DamagedFileError, match=r"config\.json is damaged or of another version: values\.fit\.gamma: "):
        run(tmp_path, "parts", byte_tokenizer)
    with pytest.raises(SolmError, match="layer 2 is out of range: this model has layers 0 to 1"):
        run(tmp_path, "other", byte_tokenizer, layer=2)


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
        reply = lm.generate(ids, budget=0.7, max_new_tokens=100, do_sample=True, eos_token_id=-1)
        again = lm.generate(ids, budget=0.7, max_new_tokens=100, do_sample=True, eos_token_id=-1)
    assert reply == again
    assert len({token.action for token in reply.tokens}) > 2
    for axis in ("attention", "mlp", "bits"):
        assert reply.compute.realised[axis] == pytest.approx(reply.compute.requested[axis], abs=0.02)


def test_a_context_in_which_an_axis_cannot_act_leaves_the_others_on_budget():
    with solm.attach(tiny_model("llama"), sparsity=SparsityConfig()) as lm:
        ids = tokens(2, 90 + 33)
        session = lm.session()
        session.prefill(ids[:, :90])
        # Up to 112 tokens all pages are sinks or window: every attention level reads everything.
        target = torch.tensor([[0.95, 0.8, 0.5]] * 2, dtype=torch.float64)
        episode = scored_under(session.fork(1), ValuePolicy(network().double(), SPACE), ids[:, 90:], target)
        torch.testing.assert_close(episode.realised.mean(1)[:, 1:], target[:, 1:], rtol=0, atol=0.02)


@pytest.mark.parametrize(("learned", "chosen"), [("grid", "fine"), ("cpu", "cpu-fine"), ("joint-27", "joint-27")])
def test_what_learned_far_levels_chooses_among_close_ones(learned, chosen):
    assert ValueTrainConfig(space=learned).choices == ActionSpace.preset(chosen)
    assert ValueTrainConfig(space=learned, choose=learned).choices == ActionSpace.preset(learned)
