"""The command as a stranger types it: real processes, exit codes, one line per mistake."""

import json
import re
import subprocess
import sys

import pytest

from helpers.commands import solm
from solm.cli.main import main

TINY_TRAIN = ["--context", "90", "--horizon", "6", "--updates", "2", "--set", "width=16", "--set", "dtype=float32"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, byte_tokenizer):
    """A tiny model folder and a policy trained for it by the command."""
    import torch

    from helpers.models import tiny_model

    root = tmp_path_factory.mktemp("cli")
    tiny_model("llama", torch.float32).save_pretrained(root / "model")
    byte_tokenizer.save_pretrained(root / "model")
    solm(
        "train", "--model", root / "model", "--out", root / "run", "--method", "grpo", "--space", "joint-8", *TINY_TRAIN
    )
    return root / "model", root / "run" / "policy"


def test_help_of_every_verb_has_examples_and_is_fast():
    for verb in (
        "allocation",
        "train",
        "eval",
        "tasks",
        "sweep",
        "report",
        "pollution",
        "shift",
        "generate",
        "serve",
        "inspect",
        "push",
        "quickstart",
    ):
        assert "Example" in solm(verb, "--help").stdout
    script = "import sys; sys.argv=['solm','--help']; import solm.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0


def test_eval_writes_the_promised_json(trained, tmp_path):
    model, policy = trained
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    shown = solm(
        "eval", "--model", model, "--policy", policy, "--data", tmp_path / "text.txt", "--budgets", "0.6,0.8",
        "--sequences", 3, "--context", 90, "--length", 12, "--trials", 2, "--seed", 0, "--json", out, "--plot", picture,
    )  # fmt: skip
    assert "budget 0.60" in shown.stdout
    points = json.loads(out.read_text())["points"]
    for point in points:
        assert {"arm", "budget", "realised", "nats", "perplexity", "tokens"} <= set(point)
        if point["arm"] not in ("dense", "policy"):
            assert point["difference"]["low"] <= point["difference"]["high"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_failed_evaluation_overwrites_nothing(trained, tmp_path):
    model, policy = trained
    mine = tmp_path / "mine.json"
    mine.write_text("mine")
    for verb, options, words in (
        ("eval", ["--policy", policy, "--data", tmp_path / "missing"], "missing"),
        ("eval", ["--policy", policy, "--data", tmp_path, "--plot", tmp_path / "a.pdf"], ".png or .svg"),
        ("eval", ["--policy", policy, "--data", "pydoc:heldout", "--baselines", "quest"], "unknown baseline 'quest'"),
        ("shift", ["--policy", policy, "--data", "pydoc:heldout"], "--method values"),
        ("pollution", ["--data", "pydoc:heldout", "--burst", "500"], "burst 500"),
    ):
        done = solm(verb, "--model", model, *options, "--json", mine, code=2)
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
        assert mine.read_text() == "mine"


def test_a_token_table_is_a_policy_that_decides_before_the_first_layer(trained, tmp_path):
    model, _ = trained
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    small = {"width": 16, "dtype": "float32", "calibration_context": 90, "calibration_horizon": 12}
    options = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    for name, layer in (("policy", 1), ("table", 0)):
        solm(
            "train", "--model", model, "--data", tmp_path / "text.txt", "--out", tmp_path / name, "--context", 90,
            "--horizon", 20, "--batches", 2, "--set", f"layer={layer}", *options,
        )  # fmt: skip
    out = tmp_path / "out.json"
    solm(
        "eval", "--model", model, "--policy", tmp_path / "policy/policy", "--space", "joint-8", "--data",
        tmp_path / "text.txt", "--rival", f"token-table={tmp_path / 'table/policy'}", "--budgets", 0.75,
        "--sequences", 3, "--context", 90, "--length", 12, "--trials", 1, "--json", out,
    )  # fmt: skip
    found = {point["arm"]: point for point in json.loads(out.read_text())["points"]}
    assert found["token-table"]["realised"] == pytest.approx(found["policy"]["realised"], abs=0.05)


def test_a_value_policy_is_trained_resumed_and_compared_with_every_arm(trained, tmp_path):
    model, _ = trained
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    (tmp_path / "other.txt").write_text("Sphinx of black quartz, judge my vow. " * 700)
    small = {"layer": 1, "width": 16, "dtype": "float32", "calibration_context": 90, "calibration_horizon": 12}
    options = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    command = ["train", "--model", model, "--data", tmp_path / "text.txt", "--out", tmp_path / "run", "--context", 90]
    solm(*command, "--horizon", 20, "--batches", 2, *options)
    solm("train", "--out", tmp_path / "run", "--batches", 3)
    assert len(list((tmp_path / "run/samples").iterdir())) == 3
    out, policy = tmp_path / "out.json", tmp_path / "run/policy"
    shown = solm(
        "eval", "--model", model, "--policy", policy, "--data", tmp_path / "text.txt", "--space", "joint-27",
        "--budgets", "0.7", "--sequences", 3, "--context", 90, "--length", 12, "--trials", 2, "--oracle",
        "--tuning", tmp_path / "other.txt", "--rival", f"same={policy}", "--json", out,
    )  # fmt: skip
    points = {point["arm"]: point for point in json.loads(out.read_text())["points"]}
    assert {"oracle", "tuned", "same", "best-of-500-random-estimated"} <= set(points)
    assert points["same"]["axes"] == pytest.approx(points["policy"]["axes"], abs=0.05)
    assert "budget 0.70" in shown.stdout


def test_generate_prints_one_json_object(trained):
    model, policy = trained
    shown = solm(
        "generate", "--model", model, "--policy", policy, "--budget", "0.6", "--max-new-tokens", 8, "--json", "x" * 90
    )
    content = json.loads(shown.stdout)
    assert len(content["tokens"]) <= 8
    assert all(token["action"].startswith("k") for token in content["tokens"])
    assert content["requested"]["net"] == pytest.approx(0.6)
    assert set(content["realised"]) >= {"attention", "mlp", "bits", "net"}


def test_generate_reads_standard_input_and_streams_plain_text_to_a_pipe(trained):
    model, _ = trained
    command = [sys.executable, "-m", "solm.cli", "generate", "--model", str(model), "--max-new-tokens", "4", "-"]
    done = subprocess.run(command, input="hello there", capture_output=True, text=True)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "realised:" in done.stderr


def test_inspect_says_what_works_and_why_not(trained, tmp_path):
    model, _ = trained
    content = json.loads(solm("inspect", model, "--json").stdout)
    assert all(axis["supported"] for axis in content["axes"].values())
    combined = content["combines"]
    assert combined["cpu backend"] == {"supported": True, "reason": None}
    assert combined["layers that compute on several devices"]["supported"]
    assert not combined["... on the cpu backend"]["supported"]
    moe = tmp_path / "moe"
    moe.mkdir()
    (moe / "config.json").write_text(
        json.dumps({"model_type": "mixtral", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
                    "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 50})
    )  # fmt: skip
    content = json.loads(solm("inspect", moe, "--json").stdout)
    assert content["axes"]["attention"]["supported"]
    assert "experts" in content["axes"]["mlp"]["reason"]
    assert "family 'mixtral'" in content["combines"]["cpu backend"]["reason"]


def test_user_errors_are_one_line_and_exit_with_code_2(trained, tmp_path, monkeypatch, capsys):
    model, policy = trained
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\nnope\n')
    data = tmp_path / "short.txt"
    for arguments, message in [
        (["inspect", "nobody/nothing"], "cannot load model 'nobody/nothing'"),
        (["inspect", "builtin:gpt5"], "unknown built-in model 'builtin:gpt5'"),
        (["inspect", tmp_path], "folder without config.json"),
        (["generate", "--model", tmp_path / "none.gguf", "x"], "no GGUF file at"),
        (["generate", "--model", model, "--policy", policy, "--budget", "0.01", "x"], "budget 0.01 is unreachable"),
        (["generate", "--model", model, "--schedule", "quick", "x"], "unknown schedule 'quick'"),
        (["generate", "--model", model, "--max-new-tokens", "9999", "x"], "exceed this model's context of 512"),
        (["generate", "--model", model, ""], "the prompt is empty"),
        (["eval", "--model", model, "--data", data], "give a policy to evaluate, or --space"),
        (["eval", "--model", model, "--policy", policy, "--data", data], "tokens; one sequence needs 641"),
        (["eval", "--model", model, "--policy", policy, "--data", tmp_path / "bad.jsonl"], "line 2: not JSON"),
        (
            ["eval", "--model", model, "--policy", policy, "--data", data, "--budgets", "a"],
            "'a' is not a list of numbers",
        ),
        (["eval", "--model", model, "--policy", policy, "--data", data, "--length", "0"], "length: Input should be"),
        (
            ["train", "--model", model, "--out", tmp_path / "x", "--method", "grpo", "--set", "gama=1"],
            "did you mean 'gamma'",
        ),
        (
            ["train", "--model", model, "--out", tmp_path / "x", "--method", "ppo"],
            "unknown method 'ppo'; choose values or",
        ),
        (["train", "--model", model, "--out", tmp_path / "x", "--updates", 3], "unknown key 'updates'"),
        (["train", "--model", model, "--out", tmp_path / "x"], "layer 4 is out of range: this model has layers 0 to 1"),
        (
            ["eval", "--model", model, "--policy", policy, "--data", data, "--space", "joint-27"],
            "the network has 8 actions",
        ),
        (["train", "--model", model, "--out", tmp_path / "x", "--set", "gamma"], "expected key=value"),
        (["train", "--model", model, "--out", data, "--method", "grpo"], "cannot use .* as a run folder"),
    ]:
        # In this process: thirty of their own would take a minute and a half to import torch.
        monkeypatch.setattr(sys, "argv", ["solm", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        error = capsys.readouterr().err
        assert ended.value.code == 2, arguments
        assert re.search(message, error), (arguments, error)
        assert error.count("\n") == 1, error


def test_a_damaged_policy_exits_with_code_3(trained, tmp_path):
    import shutil

    model, policy = trained
    broken = tmp_path / "policy"
    shutil.copytree(policy, broken)
    content = bytearray((broken / "policy.safetensors").read_bytes())
    content[-1] ^= 1
    (broken / "policy.safetensors").write_bytes(content)
    done = solm("generate", "--model", model, "--policy", broken, "x", code=3)
    assert "does not match the checksum" in done.stderr
    assert done.stderr.count("\n") == 1
