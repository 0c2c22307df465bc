"""Samples of a value policy's training: drawn levels, and differences to the dense run."""

import torch

import solm
from helpers.models import CONTEXT, STEPS, tiny_model, tokens
from helpers.policies import SPACE, SPARSITY
from solm.backends.results import SplitSchedule
from solm.fit.samples import collect_samples, draw_levels, keep_of


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
        first, second = keep_of(before, SPACE).flatten(0, 1), keep_of(after, SPACE).flatten(0, 1)
        dense, others = (
            session.fork(forks).extend(ids[:, CONTEXT:-1].repeat_interleave(forks, 0), keep).logits.log_softmax(-1)
            for forks, keep in (
                (1, torch.tensor((1.0, 1, 16)).expand(2, STEPS, 3)),
                (3, SplitSchedule(1, first, second)),
            )
        )
        others, came = others.unflatten(0, (2, 3)), ids[:, CONTEXT + 1 :, None]
        gaps = dense[:, None] - others
        cost = gaps.gather(-1, came[:, None].expand(-1, 3, -1, -1))[..., 0]
        torch.testing.assert_close(got.cost, cost.float().flatten(), rtol=1e-4, atol=1e-5)
        divergence = (dense.exp()[:, None] * gaps).sum(-1)
        torch.testing.assert_close(got.divergence, divergence.float().flatten(), rtol=1e-3, atol=1e-5)
        assert got.hidden.shape == (6 * STEPS, 64)
