"""Baselines on the real model."""

import torch

import solm
from solm.backends.torch.adaptive import Rule
from solm.backends.torch.adaptive_session import AdaptiveSession


def test_on_the_real_model_mass_beats_a_fixed_number_of_pages(real_model):
    """At the same share of attention, pages by mass lose less than as many pages at every step and layer."""
    from solm.data.windows import token_stream

    model, tokenizer = real_model
    with solm.attach(model, tokenizer=tokenizer) as lm:
        ids = token_stream("pydoc:heldout", tokenizer).spaced(4, 512 + 49, torch.Generator().manual_seed(0))
        session = lm.session(capacity=512)
        session.prefill(ids[:, :512])
        actions = torch.tensor([[0.0, 1, 16]], dtype=torch.float64).repeat(48, 1).expand(4, 48, 3).clone()

        def run(number: float, rule: Rule | None = None):
            rows = session.fork(1, capacity=80)
            rows = rows if rule is None else AdaptiveSession.of(rows, rule)
            actions[..., 0] = number
            return rows.score(ids[:, 512:], actions)

        mass, fixed = run(0.85, Rule(top_p=True)), run(0.3)
        assert mass.realised[..., 0].mean() < fixed.realised[..., 0].mean()
        assert mass.log_probabilities.double().mean() > fixed.log_probabilities.double().mean()
