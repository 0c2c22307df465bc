"""`python -m solm.paper`: a policy is trained, goes on, is evaluated, and a mistake is one line."""

import json

import pytest

from helpers.texts import FISH
from solm.paper import __main__ as command


@pytest.fixture
def run(monkeypatch, capsys):
    """A function that runs the command and gives exit code, output and errors."""

    def ran(*words):
        monkeypatch.setattr("sys.argv", ["solm.paper", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            command.main()
        told = capsys.readouterr()
        return left.value.code, told.out, told.err

    return ran


def test_a_policy_is_trained_and_compared_with_the_static_schedule(run, tiny_folder, tmp_path):
    (tmp_path / "text.txt").write_text(FISH * 3)
    small = {"context": 100, "length": 4, "texts": 1, "rollouts": 2, "width": 16, "heads": 2, "dtype": "float32"}
    words = {**small, "model": tiny_folder, "data": tmp_path / "text.txt", "space": "joint-8"}
    settings = [part for name, value in words.items() for part in ("--set", f"{name}={value}")]
    code, out, _ = run("train", "--out", tmp_path / "run", *settings, "--set", "updates=1")
    assert (code, out) == (0, f"policy: {tmp_path / 'run' / 'policy'}\n")
    assert run("train", "--out", tmp_path / "run", "--set", "updates=2")[0] == 0  # its settings are in the folder
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in log] == [1, 2]
    evaluated = ["--policy", tmp_path / "run" / "policy", "--model", tiny_folder, "--data", tmp_path / "text.txt"]
    evaluated += ["--texts", 2, "--context", 100, "--length", 8, "--dtype", "float32"]
    code, out, _ = run("eval", *evaluated, "--budgets", "0.8", "--json")
    assert code == 0
    (point,) = json.loads(out)["points"]
    assert point["realised"] == pytest.approx(0.8, abs=0.1)
    code, _, err = run("eval", *evaluated, "--budgets", "0.1")
    assert code == 2
    assert "budget 0.1 is unreachable" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "gama=1"], "--set: gama: Extra inputs are not permitted"),
        (["--set", "gamma=2"], "--set: gamma: Input should be less than or equal to 1"),
        (["--set", "budgets=[0.01]"], "budget 0.01 is unreachable"),
        (["--set", "space=joint-9"], "unknown action space 'joint-9'"),
        (["--set", "gamma"], "--set: 'gamma' is not key=value"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_loaded(run, tmp_path, words, message):
    code, out, err = run("train", "--out", tmp_path / "run", *words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "run").exists()
