"""Baselines by name: what they read is booked, budgets are kept, and each is what its name says."""

import pytest
import torch

import solm
from helpers.models import tiny_model, tokens
from helpers.policies import SPACE
from helpers.texts import FISH as TEXT
from solm.backends.torch.adaptive import HIDDEN, INPUT, Rule
from solm.backends.torch.adaptive_session import AdaptiveSession
from solm.backends.torch.families import decoder_layers, mlp_sites
from solm.backends.torch.plan import ceil_share
from solm.core.actions import ActionSpace
from solm.core.errors import SolmError
from solm.core.sparsity import SparsityConfig
from solm.data.windows import stream_of
from solm.evaluation.arms import Arm
from solm.evaluation.baselines import BASELINES, baseline
from solm.evaluation.channel_thresholds import channel_limits, thresholds
from solm.evaluation.perplexity import EvaluationSettings, evaluate
from solm.policies.schedules import Static
from solm.research.per_request import per_request, prompt_states
from solm.runtime.drive import teacher_forced

PAGES = SparsityConfig(page_size=4, sinks=4, window=8)
CONTEXT, STEPS = 90, 40


@pytest.fixture
def exact_lm(byte_tokenizer):
    with solm.attach(tiny_model("llama"), tokenizer=byte_tokenizer, sparsity=PAGES) as lm:
        yield lm


def prefilled(lm, rows: int):
    ids = tokens(rows, CONTEXT + STEPS + 1)
    session = lm.session()
    session.prefill(ids[:, :CONTEXT])
    return session, ids[:, CONTEXT:]


def keep(rows: int, *numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64).expand(rows, STEPS, 3)


def test_more_mass_reads_more_pages_and_all_of_it_is_dense(exact_lm):
    session, ids = prefilled(exact_lm, 3)
    dense = session.fork(1).score(ids, keep(3, 1, 1, 16))
    spent, lost = [], []
    for p in (0.3, 0.6, 0.8, 0.95, 1.0):
        rows = AdaptiveSession.of(session.fork(1), Rule(top_p=True))
        found = rows.score(ids, keep(3, p, 1, 16))
        torch.testing.assert_close(rows.ledger.average, found.realised.mean(1))
        assert torch.equal(rows.realised, found.realised[:, -1])
        spent.append(float(found.realised[..., 0].mean()))
        lost.append(float((found.log_probabilities - dense.log_probabilities).abs().mean()))
    assert spent == sorted(spent)
    assert spent[-1] == 1
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] < 1e-12


def test_stepping_by_mass_equals_one_pass_and_reads_what_it_says(exact_lm):
    session, ids = prefilled(exact_lm, 2)
    whole = AdaptiveSession.of(session.fork(1), Rule(top_p=True)).score(ids, keep(2, 0.7, 1, 16))
    rows = AdaptiveSession.of(session.fork(1), Rule(top_p=True))
    parts = [rows.extend(ids[:, step : step + 1], keep(2, 0.7, 1, 16)[:, :1]) for step in range(STEPS)]
    torch.testing.assert_close(torch.cat([part.realised for part in parts], 1), whole.realised)
    torch.testing.assert_close(torch.cat([part.hidden for part in parts], 1), whole.hidden)
    # Whole pages between sinks and window, on top of what is always read: never less than that, never more than all.
    always = torch.tensor([4 + n - max(0, n - 9) // 4 * 4 for n in range(CONTEXT + 1, CONTEXT + STEPS + 1)])
    read = whole.realised[..., 0] * (CONTEXT + 1 + torch.arange(STEPS))
    assert (read >= always - 1e-9).all()
    # Two layers of two KV heads: an average over four heads.
    pages = (read - always) / 4
    torch.testing.assert_close(pages * 4, (pages * 4).round(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("target", [0.4, 0.6, 0.8])
def test_the_controller_of_p_keeps_the_budget(exact_lm, target):
    session, ids = prefilled(exact_lm, 3)
    arm = baseline("top-p", exact_lm, ActionSpace(attention=(0.2, 1.0), mlp=(0.5, 1.0)))
    goal = torch.tensor([[target, 0.75, 1.0]] * 3, dtype=torch.float64)
    episode = teacher_forced(AdaptiveSession.of(session.fork(1), arm.rule()), arm.policy, ids, goal)
    assert (episode.realised.mean(1) - goal).abs().max() < 0.03
    assert episode.realised[..., 0].std(1).min() > 0.01


def test_static_at_a_level_is_quest_at_a_constant_budget(exact_lm):
    """Without sinks and window a step of Quest reads ceil(budget / page) pages, whatever was read before."""
    exact_lm.sparsity = SparsityConfig(page_size=4, sinks=0, window=0)
    session, ids = prefilled(exact_lm, 2)
    quest = session.fork(1).score(ids, keep(2, 0.4, 1, 16))
    length = CONTEXT + 1 + torch.arange(STEPS)
    pages = -(-ceil_share(torch.tensor(0.4, dtype=torch.float64), length) // 4)
    torch.testing.assert_close(quest.realised[0, :, 0] * length, torch.minimum(pages * 4, length).double())
    space = ActionSpace(attention=(0.4, 1.0))
    for arm in (Arm(Static(space)), baseline("constant", exact_lm, space)):
        for step in (1, 2):
            goal = quest.realised[:, :step].mean(1)
            episode = teacher_forced(session.fork(1), arm.policy, ids[:, : step + 1], goal)
            torch.testing.assert_close(episode.log_probabilities, quest.log_probabilities[:, :step])


def test_constant_needs_no_level_of_the_space(exact_lm):
    session, ids = prefilled(exact_lm, 2)
    goal = torch.tensor([[1.0, 0.63, 1.0]] * 2, dtype=torch.float64)
    arm = baseline("constant", exact_lm, ActionSpace(mlp=(0.4, 1.0)))
    found = teacher_forced(session.fork(1), arm.policy, ids, goal).realised[..., 1]
    assert found.std(1).max() < 0.01
    coarse = teacher_forced(session.fork(1), Static(ActionSpace(mlp=(0.4, 1.0))), ids, goal).realised[..., 1]
    assert coarse.std(1).min() > 0.2


def test_thresholds_pass_the_calibrated_share_and_book_what_passed(exact_lm):
    windows = tokens(4, CONTEXT)
    limits = channel_limits(exact_lm, windows)
    assert limits.shape == (2, 2, 101)
    assert (limits.diff(dim=-1) <= 0).all()
    assert (limits[..., -1] == 0).all()
    seen = {}
    hooks = []
    for index, layer in enumerate(decoder_layers(exact_lm.model)):
        for site, module in ((INPUT, mlp_sites(layer).mlp), (HIDDEN, mlp_sites(layer).down)):
            hooks.append(module.register_forward_pre_hook(lambda m, x, key=(index, site): seen.update({key: x[0]})))
    exact_lm.session().prefill(windows)
    for hook in hooks:
        hook.remove()
    for key, x in seen.items():
        assert float((x.abs().float() >= limits[key][60]).double().mean()) == pytest.approx(0.6, abs=0.01)
    session, ids = prefilled(exact_lm, 3)
    rows = AdaptiveSession.of(session.fork(1), Rule(thresholds=limits))
    found = rows.score(ids, keep(3, 1, 0.6, 16))
    torch.testing.assert_close(rows.ledger.average, found.realised.mean(1))
    share = found.realised[..., 1]
    assert float(share.mean()) == pytest.approx(0.6, abs=0.05)
    assert share.std() > 0.005  # tokens differ, exact top-k would not let them
    rows = AdaptiveSession.of(session.fork(1), Rule(thresholds=limits))
    rows.sparsity = rows.sparsity.model_copy(update={"hidden_power": 2})
    squared = rows.score(ids, keep(3, 1, 0.6, 16)).realised[..., 1]
    assert float(squared.mean()) == pytest.approx((0.6 + 0.6**2) / 2, abs=0.05)
    everything = AdaptiveSession.of(session.fork(1), Rule(thresholds=limits)).score(ids, keep(3, 1, 1, 16))
    dense = session.fork(1).score(ids, keep(3, 1, 1, 16))
    torch.testing.assert_close(everything.log_probabilities, dense.log_probabilities, rtol=0, atol=0)


def test_per_request_splits_by_the_prompt_and_then_stays(value_lm):
    arm = per_request(value_lm)
    prompts = tokens(3, CONTEXT)
    target = torch.tensor([[0.9, 0.9, 0.6], [0.5, 0.7, 0.9]], dtype=torch.float64).repeat(3, 1)
    split = arm.retarget(prompts, target)
    torch.testing.assert_close(split.mean(1), target.mean(1), rtol=0, atol=1e-6)
    lows, highs = torch.tensor(SPACE.ranges, dtype=torch.float64).unbind(1)
    assert ((split >= lows - 1e-9) & (split <= highs + 1e-9)).all()
    states = prompt_states(value_lm, prompts, 0)
    torch.testing.assert_close(states, value_lm.model.get_input_embeddings()(prompts))
    assert isinstance(arm.policy, Static)
    # A prompt that suffers more on an axis keeps more of it.
    value_lm.trained.network.head.bias.data[2] += 20
    dearer = per_request(value_lm).retarget(prompts, target)
    assert (dearer[:, 2] >= split[:, 2] - 1e-9).all()
    assert (dearer[:, 2] > split[:, 2] + 0.01).any()


def test_every_baseline_is_an_arm_on_the_same_tokens(value_lm, byte_tokenizer):
    stream, tuning = stream_of([TEXT], byte_tokenizer, "fish"), stream_of([TEXT[::-1]], byte_tokenizer, "hsif")
    settings = EvaluationSettings(budgets=(0.7,), sequences=4, context=60, length=24, trials=1, batch=2)
    value_lm.sparsity = PAGES
    arms = {name: baseline(name, value_lm, value_lm.space, tuning, 60) for name in BASELINES}
    result = evaluate(value_lm, [stream], settings, rivals=arms)
    found = {point.arm: point for point in result.points}
    assert set(BASELINES) <= set(found)
    for name in BASELINES:
        assert found[name].realised == pytest.approx(found["policy"].realised, abs=0.05), name
        assert found[name].difference is not None
        assert found[name].tokens == found["policy"].tokens
    for name in set(BASELINES) - {"per-request"}:
        for axis, share in found["policy"].axes.items():
            assert found[name].axes[axis] == pytest.approx(share, abs=0.07), (name, axis)


def test_a_baseline_that_cannot_run_gives_one_line(tiny_lm, exact_lm):
    space = ActionSpace.preset("joint-8")
    with pytest.raises(SolmError, match="unknown baseline 'quest'; choose among constant"):
        baseline("quest", exact_lm, space)
    with pytest.raises(SolmError, match="give --tuning"):
        baseline("teal", exact_lm, space)
    with pytest.raises(SolmError, match="--method values"):
        baseline("per-request", exact_lm, space)
    exact_lm.sparsity = SparsityConfig(window=0, sinks=0)
    with pytest.raises(SolmError, match="default sparsity"):
        baseline("top-p", exact_lm, space)
    exact_lm.sparsity = SparsityConfig(mlp_site="gate-first")
    with pytest.raises(SolmError, match="gate-first"):
        thresholds(exact_lm, stream_of([TEXT], exact_lm.tokenizer, "fish"), space, 60)
