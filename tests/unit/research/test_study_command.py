"""`solm study`: every study runs on a tiny model, prints and writes one result, and resumes after an interruption."""

import json

import pytest
from typer.testing import CliRunner

import solm
from helpers.policies import SPARSITY, under_values
from helpers.texts import FISH
from solm.cli.main import app
from solm.core.errors import SolmError
from solm.core.parts import Parts
from solm.policies.artifact import TrainedPolicy
from solm.research.studies import STUDIES
from solm.training.config import ValueTrainConfig
from solm.training.values import train_values

SMALL = ["--data", "TEXT", "--texts", "2", "--context", "60", "--length", "32", "--dtype", "float32"]
OPTIONS = {
    "kv-drift": [*SMALL, "--burst", "8", "--stretch", "8"],
    "domains": [*SMALL, "--policy", "POLICY", "--budgets", "0.7"],
    "best-of": [*SMALL, "--policy", "POLICY", "--budgets", "0.7", "--trials", "30"],
    "learning": [
        *SMALL, "--train", "TEXT", "--minutes", "0.0001", "--methods", "values,grpo", "--space", "mlp-50", "--budget",
        "0.9", "--allocation", "POLICY", "--layer", "1", "--train-batch", "2", "--train-length", "20", "--runs", "RUNS",
    ],
    "fine-tuning": [*SMALL, "--fit", "FIT", "--train", "TEXT", "--budgets", "0.7", "--backend", "torch"],
    "precision": [
        "--data", "TEXT", "--texts", "4", "--context", "90", "--length", "20", "--batches", "1", "--layer", "1",
    ],
    "graded": [
        "--gsm8k", "PROBLEMS", "--chat", "PROBLEMS", "--policy", "POLICY", "--budgets", "0.7", "--limit", "1",
        "--max-tokens", "6", "--batch", "2", "--backend", "torch", "--dtype", "float32",
    ],
    "free-running": [*SMALL, "--policy", "POLICY", "--budgets", "0.7", "--backend", "torch"],
    "long-context": [*SMALL, "--policy", "POLICY", "--contexts", "90,120"],
}  # fmt: skip


@pytest.fixture
def run(tiny_folder, tmp_path):
    """A function that runs a study with its result in tmp_path/NAME."""
    with solm.load(str(tiny_folder), dtype="float32") as lm:
        under_values(lm, SPARSITY).trained.save_pretrained(tmp_path / "policy")
    (tmp_path / "fish.txt").write_text(FISH)
    asked = {
        "data": str(tmp_path / "fish.txt"), "space": "sites", "context": 60, "length": 20, "texts": 1, "schedules": 2,
        "batches": 4, "layer": 1, "level_cost_context": 60, "level_cost_texts": 1, "level_cost_length": 8,
    }  # fmt: skip
    with solm.load(str(tiny_folder), dtype="float32") as lm:
        training = ValueTrainConfig.build(asked, "test")
        train_values(lm.with_policy(None, training.sparsity), training, tmp_path / "fit" / "training")
    (tmp_path / "fit" / "level-costs.json").write_text(json.dumps([[0.3] * 5 + [0.0], [0.2] * 6 + [0.0], [0.0]]))
    (tmp_path / "problems.jsonl").write_text(json.dumps({"question": FISH[:80], "answer": "#### 1"}))

    def study(name: str, out: str):
        places = {
            "POLICY": tmp_path / "policy", "TEXT": tmp_path / "fish.txt", "RUNS": tmp_path / f"{out} runs",
            "FIT": tmp_path / "fit",
            "PROBLEMS": tmp_path / "problems.jsonl",
        }  # fmt: skip
        options = [str(places.get(option, option)) for option in OPTIONS[name]]
        common = ["--model", tiny_folder, "--out", tmp_path / out, "--json"]
        return CliRunner().invoke(app, ["study", name, *map(str, common), *options])

    return study


def timeless(results: dict) -> dict:
    """Without what depends on how long training took."""
    for point in results.get("points", []):
        point.pop("minutes", None)
        point.get("training", {}).pop("seconds", None)
    return results


def test_every_study_is_run():
    assert set(OPTIONS) == set(STUDIES)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_study_prints_and_writes_one_result_and_resumes(name, run, tmp_path, monkeypatch):
    whole = run(name, "whole.json")
    assert whole.exit_code == 0, whole.output
    written = json.loads((tmp_path / "whole.json").read_text())
    assert json.loads(whole.stdout) == written
    assert written["kind"] == name

    made, get = [], Parts.get

    def counting(self, part, make):
        def counted():
            made.append(part)
            return make()

        if self.path is None:
            return get(self, part, make)
        found = get(self, part, counted)
        if interrupted:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Parts, "get", counting)
    interrupted = True
    assert run(name, "parts.json").exit_code != 0
    kept = json.loads((tmp_path / "parts.json.partial").read_text())["parts"]
    assert kept
    interrupted = False
    made.clear()
    resumed = run(name, "parts.json")
    assert resumed.exit_code == 0, resumed.output
    assert not set(kept) & set(made)
    assert timeless(json.loads(resumed.stdout)["results"]) == timeless(written["results"])
    assert not list(tmp_path.glob("parts.json.partial*"))


def test_fine_tuning_spends_what_the_others_spend(run, tmp_path):
    assert run("fine-tuning", "tuned.json").exit_code == 0
    results = json.loads((tmp_path / "tuned.json").read_text())["results"]
    (point,) = results["points"]
    assert set(point["arms"]) == {"part", "fine-tuned", "all"}
    for arm in point["arms"].values():
        assert arm["mlp"] == pytest.approx(0.7, abs=0.02)
        assert arm["attention"] == arm["bits"] == 1
    parts, everything = (point[f"fine_tuned_minus_{name}"]["value"] for name in ("part", "all"))
    losses = {name: arm["nats"] for name, arm in point["arms"].items()}
    assert losses["fine-tuned"] - losses["part"] == pytest.approx(parts)
    assert losses["fine-tuned"] - losses["all"] == pytest.approx(everything)
    assert results["updates"] >= 1
    assert results["batches"] == [2, 4]


@pytest.mark.parametrize(("name", "what"), [("learning", "text"), ("fine-tuning", "text"), ("fine-tuning", "fit")])
def test_a_study_does_not_go_on_with_another_training_text_or_fit(name, what, run, tmp_path, monkeypatch):
    (tmp_path / "train.txt").write_text(FISH)
    options = list(OPTIONS[name])
    options[options.index("--train") + 1] = str(tmp_path / "train.txt")
    monkeypatch.setitem(OPTIONS, name, options)
    keys = []

    def stop(self, part, make):
        keys.append(self.key)
        raise KeyboardInterrupt

    monkeypatch.setattr(Parts, "get", stop)
    for _ in range(2):
        assert run(name, "parts.json").exit_code != 0
    if what == "text":
        (tmp_path / "train.txt").write_text(FISH.replace("fish", "bird"))
    else:
        folder = tmp_path / "fit" / "training" / "policy"
        trained = TrainedPolicy.from_pretrained(folder)
        TrainedPolicy(trained.config.model_copy(update={"provenance": {}}), trained.network).save_pretrained(folder)
    assert run(name, "parts.json").exit_code != 0
    first, same, other = keys
    assert first == same != other


def test_a_result_that_cannot_be_written_costs_nothing_that_was_found(run, tmp_path, monkeypatch):
    def fail(path, text):
        raise SolmError(f"cannot write {path}: the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("solm.core.files.write_text", fail)
        patch.setattr("solm.core.parts.write_json", lambda path, content: path.write_text(json.dumps(content)))
        assert "the disk is full" in str(run("kv-drift", "drift.json").exception)
    monkeypatch.setattr("solm.research.kv_drift._batch", lambda *_: pytest.fail("measured again"))
    assert run("kv-drift", "drift.json").exit_code == 0
    assert not list(tmp_path.glob("drift.json.partial*"))
