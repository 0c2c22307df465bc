"""Allocations on both backends and in the command line."""

import re
import shutil

import pytest
import torch
from typer.testing import CliRunner

import solm
from helpers.engine import engine_of
from helpers.models import keep_of, tiny_model, tokens
from helpers.policies import BENDS, EVEN, by_head, sparsity_of
from solm.backends.cpu.session import CpuSession
from solm.backends.results import SplitSchedule
from solm.backends.torch.backend import TorchBackend
from solm.backends.torch.plan import make_plan
from solm.cli.main import app
from solm.core.allocation import Allocation
from solm.core.errors import PolicyMismatchError, SolmError
from solm.core.sparsity import SparsityConfig
from solm.training.allocate import read_allocation


@pytest.fixture(scope="module")
def control():
    control = TorchBackend(tiny_model("llama", torch.float32, num_hidden_layers=4))
    yield control
    control.detach()


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
@pytest.mark.parametrize(("power", "heads"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("action", [(0.3, 1.0, 16), (1.0, 0.5, 16), (0.25, 0.4, 6), (1.0, 1.0, 16)])
def test_both_backends_carry_out_an_allocation_alike(control, action, power, heads):
    sparsity = sparsity_of(*BENDS, hidden_power=power)
    if heads > 1:
        sparsity = sparsity.under(by_head(sparsity.allocation))
    sessions = (
        control.session(sparsity),
        CpuSession(engine_of(control.model, sparsity, "float32"), sparsity),
    )
    found = []
    for session in sessions:
        session.prefill(tokens(2, 150))
        rows = session.fork(1)
        found.append((rows, rows.extend(tokens(2, 40, seed=5), keep_of(action, 2, 40))))
    (ours, expected), (native, given_) = found
    close = (expected.logits - given_.logits).abs().amax(-1) < 1e-3
    assert close.float().mean() > 0.97
    torch.testing.assert_close(expected.realised, given_.realised)
    torch.testing.assert_close(ours.ledger.spent, native.ledger.spent)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
def test_a_mid_pass_decision_spends_what_its_parts_spend(control):
    sparsity = sparsity_of(*BENDS)
    low, high = keep_of((0.2, 0.4, 16), 2, 30), keep_of((0.6, 0.9, 16), 2, 30)
    parts = [make_plan(keep, 101 + torch.arange(30).expand(2, 30), sparsity, control.shapes) for keep in (low, high)]
    expected = parts[0].realised_by(0, 1, 4) + parts[1].realised_by(1, 4, 4)
    for session in (
        control.session(sparsity), CpuSession(engine_of(control.model, sparsity, "float32"), sparsity)
    ):  # fmt: skip
        session.prefill(tokens(2, 100))
        found = session.fork(1).extend(tokens(2, 30, seed=5), SplitSchedule(1, low, high))
        torch.testing.assert_close(found.realised, expected)


@pytest.mark.parametrize("context", ["abc", "1024,", "64;128"])
def test_contexts_that_are_no_numbers_are_named(context, tmp_path):
    done = CliRunner().invoke(app, ["allocate", "--out", str(tmp_path / "layers.json"), "--context", context])
    assert isinstance(done.exception, SolmError)
    assert str(done.exception) == f"--context: {context!r} is not a list of whole numbers such as 64,1024"


def test_an_interrupted_command_says_how_to_go_on(tiny_folder, tmp_path, monkeypatch):
    def interrupted(lm, windows, contexts, partial, *_):
        partial.write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr("solm.training.allocate._find", interrupted)
    done = CliRunner().invoke(
        app, ["allocate", "--model", str(tiny_folder), "--out", str(tmp_path / "l.json"), "--context", "96"]
    )
    assert done.exit_code == 130
    assert "The same command continues" in done.output


def test_an_allocation_for_another_model_is_refused():
    with pytest.raises(PolicyMismatchError, match="4 layers, this one has 2"):
        solm.attach(tiny_model("llama"), sparsity=sparsity_of(*BENDS))
    three = Allocation(attention=(EVEN,) * 6, mlp=(EVEN,) * 2)
    with pytest.raises(PolicyMismatchError, match="3 KV heads, this one has 2"):
        solm.attach(tiny_model("llama"), sparsity=SparsityConfig(window=16, allocation=three))
    model = tiny_model("llama")
    solm.attach(model).detach()  # the refusal left no hooks behind elsewhere, and this model is free


def test_train_uses_the_allocation_that_allocate_wrote(tiny_folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("All that glisters is not gold, often have you heard that told. " * 60)
    layers, run = tmp_path / "layers.json", tmp_path / "run"
    common = ["--model", str(tiny_folder), "--data", str(text)]
    done = CliRunner().invoke(
        app, ["allocate", *common, "--out", str(layers), "--texts", "2", "--context", "128", "--length", "16"]
    )
    assert done.exit_code == 0, done.output
    assert len(re.findall(r"uniform \d", done.output)) == 6
    done = CliRunner().invoke(
        app,
        ["train", *common, "--out", str(run), "--allocation", str(layers), "--batches", "1", "--context", "128",
         "--length", "8", "--set", "schedules=1", "--set", "layer=1", "--set", "level_cost_texts=2",
         "--set", "level_cost_length=8", "--set", "level_cost_context=128"],
    )  # fmt: skip
    assert done.exit_code == 0, (done.output, done.exception)
    lm = solm.load(str(tiny_folder), str(run / "policy"))
    assert lm.sparsity.allocation == read_allocation(layers) == read_allocation(run / "policy")
    reply = lm.generate(tokens(1, 120), budget=solm.Budget(attention=0.5, mlp=0.6, bits=8), max_new_tokens=24)
    assert reply.compute.realised["mlp"] == pytest.approx(0.6, abs=0.04)
