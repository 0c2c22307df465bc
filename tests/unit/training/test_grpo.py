"""The objective on numbers worked out by hand, and training runs that are interrupted, resumed and misused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import solm
from helpers.models import tiny_model
from solm.core.errors import DamagedFileError, RunMismatchError, SolmError
from solm.core.provenance import command_line, commit
from solm.data.windows import stream_of
from solm.training.config import TrainConfig, read_values
from solm.training.grpo import train
from solm.training.objective import advantages, budget_penalty, clipped_objective, returns_to_go
from solm.training.ranks import Ranks
from solm.training.rollout import collect

TINY = {
    "data": "pydoc:train", "space": "joint-8", "context": 90, "length": 6, "texts": 2, "rollouts": 4,
    "updates": 4, "width": 16, "heads": 2, "dtype": "float32", "checkpoint_every": 2, "learning_rate": 0.01,
}  # fmt: skip


def tiny_config(**changes) -> TrainConfig:
    return TrainConfig.build({**TINY, **changes}, "test")


def test_returns_to_go():
    rewards = torch.tensor([1.0, 2.0, 4.0])
    assert returns_to_go(rewards, 0.5).tolist() == [3.0, 4.0, 4.0]


def test_penalty_spares_gaps_within_tolerance_and_axes_without_a_choice():
    config = tiny_config(space="mlp-40")
    realised = torch.tensor([[[0.5, 0.51, 0.5], [0.5, 0.62, 0.5]]], dtype=torch.float64)
    penalty, gap = budget_penalty(realised, torch.full_like(realised, 0.5), config)
    assert penalty[0].tolist() == pytest.approx([0.0, 100 * 0.1**2])
    assert gap[0, 1].tolist() == pytest.approx([0, 0.12, 0])


@pytest.mark.parametrize("kind", ["priced", "process", "outcome"])
def test_advantages_are_centred_within_a_text_and_whitened(kind):
    config = tiny_config(advantage=kind)
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    rewards[1] += 100  # another text may be easier; that must not matter
    realised = torch.rand(2, 4, 6, 3, generator=generator, dtype=torch.float64)
    value = advantages(rewards, realised, torch.zeros(2, 4), torch.ones(2, 4, 6, dtype=torch.bool), config)
    assert value.mean(1).abs().max() < 1e-6
    assert float(value.std()) == pytest.approx(1)


def test_priced_credit_takes_out_the_average_gain_from_compute():
    """Rewards that are a constant price times what was spent leave nothing to learn; one token worth more does."""
    config = tiny_config(advantage="priced", gamma=1e-9)
    generator = torch.Generator().manual_seed(0)
    realised = torch.rand(2, 8, 6, 3, generator=generator, dtype=torch.float64)
    on = torch.ones(2, 8, 6, dtype=torch.bool)
    rewards = realised @ torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    rewards[:, :, 3] += 3 * realised[:, :, 3, 1]
    value = advantages(rewards, realised, torch.zeros(2, 8), on, config)
    spent = realised[..., 1] - realised[..., 1].mean(1, keepdim=True)
    slope = (value * spent).sum((0, 1)) / (spent**2).sum((0, 1))
    assert slope[3] > 0
    assert (slope[[0, 1, 2, 4, 5]] < 0).all()


def test_objective_gradient_is_reinforce_on_the_first_epoch():
    config = tiny_config(entropy=0)
    logits = torch.randn(3, 5, 8, requires_grad=True)
    actions, advantage = torch.randint(8, (3, 5)), torch.randn(3, 5)
    on = torch.ones(3, 5, dtype=torch.bool)
    chosen = logits.log_softmax(-1).gather(-1, actions[..., None])[..., 0]
    loss = clipped_objective(logits, chosen.detach(), actions, advantage, on / on.sum(), config).total
    expected = torch.autograd.grad(-(chosen * advantage).mean(), logits)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], expected)


def test_the_ratio_is_clipped():
    config = tiny_config(entropy=0)
    logits = torch.zeros(1, 1, 2, requires_grad=True)
    old = torch.tensor([[-3.0]])
    on = torch.ones(1, 1, dtype=torch.bool)
    loss = clipped_objective(
        logits, old, torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1), on.float(), config
    ).total
    assert float(loss.detach()) == pytest.approx(-1.2)
    assert torch.autograd.grad(loss, logits)[0].abs().max() == 0


def test_rollouts_of_a_text_share_tokens_and_budget_and_are_recorded(tiny_lm):
    config = tiny_config()
    tiny_lm.sparsity = config.sparsity
    stream = stream_of(["a quick brown fox " * 200], tiny_lm.tokenizer, "fox")
    from solm.policies.learned import LearnedPolicy
    from solm.policies.network import NetworkConfig, PolicyNetwork

    network = PolicyNetwork(NetworkConfig(base_hidden=64, actions=8, width=16, heads=2)).eval()
    batch = collect(tiny_lm, LearnedPolicy(network, config.space, clamp=False), [stream], config, 1, Ranks())
    target = batch.target.unflatten(0, (2, 4))
    assert torch.equal(target, target[:, :1].expand_as(target))
    embedding = batch.episode.features.embedding.unflatten(0, (2, 4))
    assert torch.equal(embedding, embedding[:, :1].expand_as(embedding))
    assert len({tuple(row) for row in batch.episode.actions.tolist()}) > 2
    again = collect(tiny_lm, LearnedPolicy(network, config.space, clamp=False), [stream], config, 1, Ranks())
    assert torch.equal(again.episode.actions, batch.episode.actions)


def run(tmp_path, name, byte_tokenizer, stop_after=None, **changes):
    """Train in tmp_path/name; stop_after: raise SIGINT during that update."""
    config = tiny_config(**changes)

    def report(record):
        if record["update"] == stop_after:
            signal.raise_signal(signal.SIGINT)

    with solm.attach(tiny_model("llama", torch.float32), tokenizer=byte_tokenizer, sparsity=config.sparsity) as lm:
        before = [p.clone() for p in lm.model.parameters()]
        try:
            trained = train(lm, config, tmp_path / name, report)
        finally:
            assert all(torch.equal(a, b) for a, b in zip(before, lm.model.parameters(), strict=True))
    return trained.network.state_dict()


def test_interrupted_and_resumed_equals_uninterrupted_bitwise(tmp_path, byte_tokenizer):
    from solm.training.interrupt import Interrupted

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


def test_a_clock_that_jumps_changes_no_training(tmp_path, byte_tokenizer, monkeypatch):
    """The wall clock goes back ten years between two updates, and to the day after tomorrow when training resumes."""
    from solm.training.interrupt import Interrupted

    whole = run(tmp_path, "whole", byte_tokenizer)
    for jump in (-3e8, 2e5):
        now = time.time()
        monkeypatch.setattr(time, "time", lambda now=now, jump=jump: now + jump)
        monkeypatch.setattr(time, "time_ns", lambda now=now, jump=jump: int(1e9 * (now + jump)))
        if jump < 0:
            with pytest.raises(Interrupted):
                run(tmp_path, "parts", byte_tokenizer, stop_after=2)
    # Files of the first part are younger or older than the clock says.
    os.utime(tmp_path / "parts" / "checkpoint.safetensors", (2e9, 2e9))
    resumed = run(tmp_path, "parts", byte_tokenizer)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    seconds = [json.loads(line)["seconds"] for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert all(0 < spent < 600 for spent in seconds)


def test_training_may_be_extended_and_a_finished_run_is_reused(tmp_path, byte_tokenizer):
    short = run(tmp_path, "a", byte_tokenizer, updates=2)
    again = run(tmp_path, "a", byte_tokenizer, updates=2)
    assert all(torch.equal(value, again[name]) for name, value in short.items())
    longer = run(tmp_path, "a", byte_tokenizer, updates=4)
    whole = run(tmp_path, "b", byte_tokenizer, updates=4)
    assert all(torch.equal(value, longer[name]) for name, value in whole.items())


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_the_number_of_passes_per_update_changes_nothing(tmp_path, byte_tokenizer, parts):
    """Policies within 1e-5 after three updates of two epochs each: only the order of float sums differs."""
    whole = run(tmp_path, "whole", byte_tokenizer, updates=3, epochs=2)
    in_parts = run(tmp_path, "parts", byte_tokenizer, updates=3, epochs=2, accumulate=parts)
    for name, value in whole.items():
        gap = (in_parts[name] - value).abs()
        if name == "qkv.bias":
            # A softmax does not see the keys' bias: its gradient is rounding noise, which Adam makes steps of.
            gap.view(3, -1)[1] = 0
        assert gap.max() < 1e-5, name
    once = run(tmp_path, "once", byte_tokenizer, updates=1, epochs=2)
    assert any((value - once[name]).abs().max() > 1e-3 for name, value in whole.items())


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


def test_a_policy_says_where_it_comes_from(tmp_path, byte_tokenizer):
    run(tmp_path, "a", byte_tokenizer, updates=1, seed=5)
    known = json.loads((tmp_path / "a" / "policy" / "policy_config.json").read_text())["provenance"]
    assert known["config"]["seed"] == 5
    assert len(known["data_fingerprint"]) >= 16
    assert set(known["versions"]) == {"solm", "torch", "transformers"}
    assert known["made"]["command"] == command_line()
    assert known["made"]["commit"] == commit()


def test_commands_are_told_as_a_user_would_type_them(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["/x/solm/cli/__main__.py", "train", "--out", str(tmp_path / "a b")])
    assert command_line() == "solm train --out 'a b'"


def test_a_folder_of_another_run_or_in_use_is_refused_and_left_alone(tmp_path, byte_tokenizer):
    from solm.training.checkpoint import RunFolder

    run(tmp_path, "a", byte_tokenizer, updates=2)
    kept = (tmp_path / "a" / "checkpoint.safetensors").read_bytes()
    with pytest.raises(RunMismatchError, match=r"gamma: 0\.85 there, 0\.5 here"):
        run(tmp_path, "a", byte_tokenizer, gamma=0.5)
    folder = RunFolder(tmp_path / "a", tiny_config())
    with pytest.raises(RunMismatchError, match="another process is training"):
        run(tmp_path, "a", byte_tokenizer)
    folder.close()
    assert (tmp_path / "a" / "checkpoint.safetensors").read_bytes() == kept


@pytest.mark.parametrize("damage", ["truncate", "empty", "foreign"])
def test_a_damaged_checkpoint_is_one_typed_error(tmp_path, byte_tokenizer, damage):
    from safetensors.torch import save_file

    run(tmp_path, "a", byte_tokenizer, updates=2)
    path = tmp_path / "a" / "checkpoint.safetensors"
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        save_file({"policy.x": torch.zeros(1)}, path, {"updates": "2"})
    with pytest.raises(DamagedFileError, match=r"damaged|does not fit"):
        run(tmp_path, "a", byte_tokenizer)


def test_a_full_disk_is_reported_and_the_old_checkpoint_survives(tmp_path, byte_tokenizer, monkeypatch):
    import solm.core.files

    run(tmp_path, "a", byte_tokenizer, updates=2)
    kept = (tmp_path / "a" / "checkpoint.safetensors").read_bytes()

    def full(descriptor):
        if "checkpoint" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(solm.core.files.os, "fsync", full)
    with pytest.raises(SolmError, match=r"cannot write .*checkpoint\.safetensors: No space left on device"):
        run(tmp_path, "a", byte_tokenizer, updates=4)
    assert (tmp_path / "a" / "checkpoint.safetensors").read_bytes() == kept
    assert not list((tmp_path / "a").glob(".checkpoint*"))


def test_sigterm_of_the_command_saves_and_exits_143(tmp_path, tiny_folder):
    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "solm.cli", "train", "--method", "grpo", "--model", str(tiny_folder), "--out", str(out),
        "--updates", "5000",
        "--context", "90", "--length", "6", "--set", "width=16", "--set", "dtype=float32",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "log.jsonl").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "Go on with: solm train --out" in errors
    assert (out / "checkpoint.safetensors").exists()


@given(st.text(min_size=1, max_size=12))
def test_unknown_keys_are_refused(key):
    if key in TrainConfig.model_fields:
        return
    with pytest.raises(SolmError, match="unknown key"):
        TrainConfig.build({key: 1}, "x.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 1}, "unknown key 'learning_rat'; did you mean 'learning_rate'"),
        ({"gamma": 2}, r"gamma: Input should be less than or equal to 1 \(got 2\)"),
        ({"space": "joint-9"}, "unknown action space 'joint-9'; choose one of"),
        ({"sparsity": "own"}, "unknown sparsity 'own'"),
        ({"rollouts": 1}, "rollouts: Input should be greater than or equal to 2"),
        ({"width": 30}, "width 30 must be a multiple of heads 4"),
        ({"context": 8}, "context 8 leaves no controllable step"),
    ],
)
def test_bad_settings_name_key_value_and_range(values, message):
    with pytest.raises(SolmError, match=message):
        TrainConfig.build(values, "x.yaml")


def test_yaml_files(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("space: joint-27\ngamma: 0.9\ndata: a.txt, b.txt\n")
    config = TrainConfig.build({**read_values(path), "gamma": 0.5}, str(path))
    assert (len(config.space), config.gamma, config.data) == (27, 0.5, ("a.txt", "b.txt"))
    for content, message in [("a: [", "cannot read"), ("- 1", "expected keys and values"), ("\x00", "cannot read")]:
        path.write_text(content)
        with pytest.raises(SolmError, match=message):
            TrainConfig.build(read_values(path), str(path))
    with pytest.raises(SolmError, match="cannot read"):
        read_values(tmp_path / "none.yaml")
