"""The command as a stranger types it: real processes, exit codes, one line per mistake."""

import json
import subprocess
import sys

import pytest

from helpers.commands import solm
from helpers.models import tiny_model
from helpers.policies import under_values


@pytest.fixture(scope="module")
def trained(tmp_path_factory, byte_tokenizer):
    """A tiny model folder and a policy for it."""
    import torch

    import solm as package

    root = tmp_path_factory.mktemp("cli")
    tiny_model("llama", torch.float32).save_pretrained(root / "model")
    byte_tokenizer.save_pretrained(root / "model")
    with package.load(root / "model", backend="torch") as lm:
        under_values(lm, package.SparsityConfig.preset("default")).trained.save_pretrained(root / "policy")
    return root / "model", root / "policy"


def test_help_imports_no_torch():
    script = "import sys; sys.argv=['solm','--help']; import solm.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0


def test_eval_writes_the_promised_json(trained, tmp_path):
    model, policy = trained
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    out, page = tmp_path / "out.json", tmp_path / "page.html"
    shown = solm(
        "eval", "--model", model, "--policy", policy, "--data", tmp_path / "text.txt", "--budgets", "0.6,0.8",
        "--texts", 3, "--context", 90, "--length", 12, "--seed", 0, "--out", out, "--out", page,
    )  # fmt: skip
    assert "net keep 0.60" in shown.stdout
    points = json.loads(out.read_text())["points"]
    for point in points:
        assert {"arm", "budget", "realised", "nats", "perplexity", "tokens"} <= set(point)
        if point["arm"] not in ("dense", "policy"):
            assert point["difference"]["low"] <= point["difference"]["high"]
    assert "net keep 0.60" in page.read_text()


def test_generate_reads_standard_input_and_streams_plain_text_to_a_pipe(trained):
    model, _ = trained
    command = [
        sys.executable,
        "-m",
        "solm.cli",
        "generate",
        "--model",
        str(model),
        "--max-new-tokens",
        "4",
        "--budget",
        "mlp=0.7",
        "-",
    ]
    done = subprocess.run(command, input="hello there", capture_output=True, text=True)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "realised:" in done.stderr


def test_a_budget_without_a_trained_policy_is_static_and_a_reply_is_written(trained, tmp_path):
    model, _ = trained
    out = tmp_path / "reply.json"
    options = ["--budget", "keep=0.7", "--max-new-tokens", 30, "--out", out, "--json"]
    shown = solm("generate", "--model", model, *options, "x" * 90)
    assert json.loads(shown.stdout) == json.loads(out.read_text())
    assert shown.stderr.startswith("solm: ")
    assert shown.stderr.count("\n") == 1
    assert json.loads(shown.stdout)["realised"]["net"] < 1


def test_doctor_says_which_backend_runs_a_model_and_why_not(trained, monkeypatch):
    model, _ = trained
    told = json.loads(solm("doctor", "--model", model, "--json").stdout)
    assert told["engine"]["builds"]
    assert f"{told['processor']['usable']['cores']} cores" in told["processor"]["why"]
    assert told["backend"] == {"auto": "cpu", "reason": None}
    assert told["gigabytes_per_second"] > 0
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setenv("SOLM_CXXFLAGS", "-DFRESH")  # another engine than the one that is built
    told = json.loads(solm("doctor", "--model", model, "--json").stdout)
    assert told["backend"]["auto"] == "torch"
    assert "/nowhere/c++" in told["backend"]["reason"]
    assert told["fixes"]


def test_a_damaged_policy_exits_with_code_3(trained, tmp_path):
    import shutil

    model, policy = trained
    broken = tmp_path / "policy"
    shutil.copytree(policy, broken)
    content = bytearray((broken / "policy.safetensors").read_bytes())
    content[-1] ^= 1
    (broken / "policy.safetensors").write_bytes(content)
    done = solm("generate", "--model", model, "--policy", broken, "x", code=3)
    assert "do not match the digest" in done.stderr
    assert done.stderr.count("\n") == 1
