"""The phase that times steps: disturbed measurements, and models of which nothing can be saved."""

from types import SimpleNamespace

import pytest
import torch

from helpers.timings import made_timings
from solm.core.cost import read_timings
from solm.core.errors import SolmError
from solm.evaluation.texts import TokenStream
from solm.fit import timings


def fit(lm, folder, said: list[str]):
    sizes = SimpleNamespace(timing_contexts=(100, 400), timing_rounds=3, context=100)
    train = [TokenStream(torch.zeros(500, dtype=torch.int32), "zeros", "0")]
    return SimpleNamespace(
        lm=lm, sizes=lambda phase: sizes, texts=SimpleNamespace(train=train), progress=lambda phase: None,
        remark=said.append, folder=SimpleNamespace(path=folder),
    )  # fmt: skip


def measured(lm, monkeypatch, *disturbances: tuple[float, ...]) -> list[tuple[int, ...]]:
    """Let measurements in turn be disturbed so much, at each of their contexts. Returns the contexts asked for."""
    asked, left = [], list(disturbances)

    def measure(lm, tokens, contexts, rounds, progress):
        asked.append(contexts)
        attention = [{100: 0.1, 400: 0.4}[context] for context in contexts]
        quiet = made_timings(lm.sparsity, lm.shapes, contexts, attention)
        pairs = zip(quiet.attention_ms, left.pop(0), strict=True)
        return quiet.model_copy(update={"attention_ms": tuple(tuple(x * (1 + d) for x in row) for row, d in pairs)})

    monkeypatch.setattr(timings, "measure", measure)
    return asked


def test_only_disturbed_contexts_are_measured_again(tiny_lm, tmp_path, monkeypatch):
    said: list[str] = []
    asked = measured(tiny_lm, monkeypatch, (0.01, 0.4), (0.02,))
    timings.time_steps(fit(tiny_lm, tmp_path, said))
    assert asked == [(100, 400), (400,)]
    assert said == ["timings: two measurements of one step differ by 40%; those after 400 tokens are repeated"]
    assert read_timings(tmp_path / timings.TIMINGS).disturbances == pytest.approx([0.01, 0.02])


def test_a_machine_whose_timings_keep_jumping_is_told_how_sure_they_are(tiny_lm, tmp_path, monkeypatch):
    said: list[str] = []
    measured(tiny_lm, monkeypatch, (0.3, 0.4), (0.3, 0.4), (0.3, 0.4), (0.3, 0.4))
    timings.time_steps(fit(tiny_lm, tmp_path, said))
    assert said[-1] == (
        "timings: they still differ by 40%, so budgets in time are no surer than that; other processes use this machine"
    )


def test_a_model_of_which_nothing_can_be_saved_is_refused(tiny_lm):
    known = made_timings(tiny_lm.sparsity, tiny_lm.shapes, attention=(0.001, 0.001), mlp=0.001)
    with pytest.raises(SolmError, match=r"take at least 0\.99\d of the dense step's time.*there is nothing to fit"):
        timings.check_worth(tiny_lm, known, 100)
