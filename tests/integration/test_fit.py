"""`solm fit` on a tiny model: from text to a policy with a curve, interrupted and gone on with, and what is refused."""

import json
import shutil
import sys

import pytest
import torch
from gguf.constants import GGMLQuantizationType as TensorType

from helpers.gguf_files import WIDE, write_gguf
from helpers.models import tiny_model
from helpers.timings import as_measured, made_clock
from solm.cli.main import main
from solm.core.errors import RunMismatchError
from solm.evaluation.texts import token_stream
from solm.fit import costs, job
from solm.fit.job import OWN
from solm.fit.plan import Compared, Speed
from solm.fit.run import fit
from solm.fit.texts import SCORED
from solm.policies.artifact import TrainedPolicy
from solm.runtime.load import load

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
MINUTES = "0.1"


@pytest.fixture
def timed(monkeypatch):
    """Timings and speeds that are known, as those of a tiny model are noise."""

    monkeypatch.setattr(costs, "measure_clock", as_measured)
    monkeypatch.setattr(
        "solm.runtime.language_model.measure_clock",
        lambda lm, progress: made_clock(model=lm.name, backend=lm.backend.name),
    )
    monkeypatch.setattr("solm.fit.job.measure_speed", lambda lm, tokens: Speed(10_000, 5000))
    monkeypatch.setattr("solm.fit.job.Job.pace", lambda job, phase: job.minutes)  # however long phases took
    plan = job.plan

    def planned(*asked, **place):
        """With a second comparison and a longer context, which so few seconds have no time for."""
        sizes, *needed = plan(*asked, **place)
        more = {"comparisons": (*sizes.comparisons, Compared(64, 6, 32, 4)), "long_contexts": (320,), "long_texts": 2}
        return (sizes.model_copy(update=more), *needed)

    monkeypatch.setattr(job, "plan", planned)


@pytest.fixture
def solm(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["solm", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, capsys.readouterr()

    return run


@pytest.fixture
def texts(tmp_path):
    """Two sources of some thousand bytes, each a token."""
    for name in ("a", "b"):
        line = f"Text {name} says that numbers such as {ord(name)} come back in every line, and 17 words more.\n"
        (tmp_path / f"{name}.txt").write_text("".join(f"{number} {line}" for number in range(200)))
    return f"{tmp_path / 'a.txt'},{tmp_path / 'b.txt'}"


def test_a_model_without_a_policy_gets_one_with_a_dial(tiny_folder, texts, tmp_path, timed, solm):
    out = tmp_path / "run"
    code, said = solm("fit", tiny_folder, "--data", texts, "--minutes", MINUTES, "--out", out, "--json")
    assert not code, said.err
    assert "plan for 0.1 minutes" in said.err
    told = json.loads(said.out)
    assert told["policy"] == str(out / "policy")
    budgets = [point["budget"] for point in told["points"]]
    assert [point["context"] for point in told["points"]] == [64] * 5 + [256] * 5
    for point in told["points"]:
        assert point["texts"] == 6 or point["context"] == 256
        assert point["step_ms"] == pytest.approx(10 * point["budget"], rel=0.03), "the budget in time is kept"
        assert point["speed"] == pytest.approx(10 / point["step_ms"])
        assert point["low"] <= point["nats"] <= point["high"]
    for file in ("evaluation.json", "evaluation-after-64.json"):
        arms = json.loads((out / file).read_text())["points"]
        taken = {(point["arm"], point["budget"]): point["step_ms"] for point in arms}
        for arm, budget in taken:
            if arm in ("uniform", "constant"):
                assert taken[arm, budget] == pytest.approx(taken["policy", budget], rel=0.01), "equal time for all"
    trained = TrainedPolicy.from_pretrained(out / "policy")
    assert trained.curve is not None
    card = (out / "policy" / "README.md").read_text()
    assert "## Budgets" in card
    assert "6 texts after 64 tokens" in card
    report = (out / "report.html").read_text()
    assert report.index("after 256 tokens") < report.index("after 64 tokens")
    for file in out.rglob("*"):  # a policy is given away, and its user's folders are nobody's business
        assert not file.is_file() or str(tmp_path).encode() not in file.read_bytes(), file
    assert trained.config.base.name == tiny_folder.name
    assert trained.config.provenance["config"]["data"] == ["a.txt", "b.txt", OWN]
    own = torch.tensor(json.loads((out / "own-texts.json").read_text()))
    assert own.shape == (2, 256 + SCORED)
    lm = load(tiny_folder, backend="cpu")
    given = torch.cat([token_stream(name, lm.tokenizer).tokens for name in texts.split(",")]).unfold(0, 256, 1)
    assert all((given == row[:256]).all(1).any() for row in own), "each begins like a given text"

    code, said = solm("fit", tiny_folder, "--data", texts, "--minutes", MINUTES, "--out", out, "--json")
    assert not code
    assert json.loads(said.out) == told, "all is done: nothing changes"
    assert "plan" not in said.err

    lost = (out / "evaluation-after-64.json", out / "policy" / "policy.safetensors")
    for file in lost:
        file.unlink()
        code, said = solm("fit", tiny_folder, "--data", texts, "--minutes", MINUTES, "--out", out, "--json")
        assert not code, said.err
        assert json.loads(said.out) == told, "what is missing is made again"
    assert all(file.exists() for file in lost)

    result = tmp_path / "eval.json"
    code, said = solm(
        "eval", "--model", tiny_folder, "--backend", "cpu", "--policy", out / "policy", "--data", texts.split(",")[0],
        "--budgets", "auto", "--texts", "4", "--context", "200", "--length", "40", "--out", result,
    )  # fmt: skip
    assert not code, said.err
    assert str(tmp_path) not in result.read_text()
    points = json.loads(result.read_text())["points"]
    found = {(point["arm"], point["budget"]) for point in points}
    for budget in {point["budget"] for point in points if point["arm"] == "policy"}:
        assert {arm for arm, at in found if at == budget} == {"dense", "policy", "allocated", "uniform", "constant"}
    for point in points:
        assert point["step_ms"] > 0
        assert (point["difference"] is None) == (point["arm"] == "policy")

    common = ["--model", tiny_folder, "--backend", "cpu", "--policy", out / "policy", "--max-new-tokens", "4", "hi"]
    for budget in ("0.8", "speed=1.2", "ms=8", "loss=0.5"):
        code, said = solm("generate", *common, "--budget", budget)
        assert not code, said.err
    code, said = solm("generate", *common, "--budget", "speed=1.2", "--json")
    told = json.loads(said.out)
    assert told["budget"] == "speed=1.2"
    assert told["measured_on"].startswith("cpu ")
    assert told["requested"]["speed"] == pytest.approx(1.2, abs=0.01)
    assert told["requested"]["loss"] == pytest.approx(
        trained.curve.on(made_clock(**told["clock"])).loss(told["requested"]["time"], 70)[0]
    )
    code, said = solm("generate", *common, "--budget", "0.2")
    assert code == 2
    assert "unreachable: steps of this model read" in said.err
    code, said = solm("policies", "show", out / "policy", "--json")
    told = json.loads(said.out)
    assert [point["budget"] for point in told["budgets"]] == budgets


def test_weight_bits_are_dealt_out_layer_by_layer(tiny_folder, texts, tmp_path, timed, solm):
    """And policies that say so are loaded with weights of two halves."""
    out = tmp_path / "run"
    code, said = solm("fit", tiny_folder, "--data", texts, "--minutes", MINUTES, "--out", out, "--precision", "nested")
    assert not code, said.err
    trained = TrainedPolicy.from_pretrained(out / "policy")
    allocation = trained.config.sparsity.allocation
    assert allocation is not None
    assert trained.config.sparsity.bits_site == "weights"
    found = json.loads((out / "allocation.json").read_text())
    assert {"input_bits", "hidden_bits"} <= set(found["costs"])
    layers = trained.config.base.layers
    assert all(len(found["costs"][axis]) == layers for axis in ("input_bits", "hidden_bits"))
    arms = {point["arm"] for point in json.loads((out / "evaluation.json").read_text())["points"]}
    assert {"policy", "uniform", "constant", "teal", "upper-bits"} <= arms
    assert "weight bits" in (out / "policy" / "README.md").read_text()
    assert "nested" in load(tiny_folder, out / "policy", backend="cpu").backend.name


def test_bits_of_a_gguf_file_in_8_bits_are_dealt_out_as_the_file_has_them(
    byte_tokenizer, texts, tmp_path, timed, solm, monkeypatch
):
    monkeypatch.setattr("solm.runtime.load.model_tokenizer", lambda *_, **__: byte_tokenizer)
    write_gguf(tmp_path / "tiny.gguf", "llama", lambda name: TensorType.Q8_0, **WIDE)
    out = tmp_path / "run"
    code, said = solm("fit", tmp_path / "tiny.gguf", "--data", texts, "--minutes", MINUTES, "--out", out)
    assert not code, said.err
    assert "the policy will also choose how many bits of the MLP's weights a step reads" in said.err
    allocation = TrainedPolicy.from_pretrained(out / "policy").config.sparsity.allocation
    assert allocation is not None
    assert allocation.has_bits
    lm = load(tmp_path / "tiny.gguf", out / "policy", tokenizer=byte_tokenizer, backend="cpu")
    assert "nested" not in lm.backend.name
    assert "8 bits" in lm.backend.name


def test_of_a_mixture_experts_are_dealt_out_beside_pages(byte_tokenizer, texts, tmp_path, timed, solm):
    tiny_model("qwen3_moe", torch.float32, num_experts_per_tok=4).save_pretrained(tmp_path / "tiny")
    byte_tokenizer.save_pretrained(tmp_path / "tiny")
    out = tmp_path / "run"
    asked = ("--data", texts, "--minutes", MINUTES, "--out", out, "--experts", "--json")
    code, said = solm("fit", tmp_path / "tiny", *asked)
    assert not code, said.err
    points = [point for point in json.loads(said.out)["points"] if point["context"] == 256]
    for point in points:
        assert point["step_ms"] == pytest.approx(10 * point["budget"], rel=0.03), "the budget in time is kept"
    found = json.loads((out / "allocation.json").read_text())
    assert {axis: len(units) for axis, units in found["costs"].items()}["mlp"] == 2
    rules = TrainedPolicy.from_pretrained(out / "policy").config.sparsity
    assert (rules.mlp_site, rules.thresholds.sites, rules.allocation.sites) == ("experts", 1, 1)
    lm = load(tmp_path / "tiny", out / "policy", backend="cpu")
    replies = [lm.generate("Text a says", budget=budget, max_new_tokens=60) for budget in (0.75, 0.85, 0.95)]
    visited = [reply.compute.realised["mlp"] for reply in replies]
    assert 0.25 <= visited[0] < visited[1] - 0.02 < visited[2] - 0.04 < 1
    for reply in replies:
        assert reply.compute.bytes == pytest.approx(reply.compute.requested["bytes"], abs=0.03)


def resumed_costs(folder):
    return TrainedPolicy.from_pretrained(folder / "policy").network.config.costs_after


def test_an_interrupted_fit_goes_on_and_ends_where_it_would_have(tiny_folder, texts, tmp_path, timed):
    lm = load(tiny_folder, backend="cpu")
    streams = [token_stream(name, lm.tokenizer) for name in texts.split(",")]
    whole = fit(lm, streams, tmp_path / "whole", 0.1)
    before: set[str] = set()
    for stop in ("allocation", "samples", "comparison"):
        seen = []

        def report(phase, done, total, left, seen=seen, stop=stop):
            if phase == stop and done:
                raise KeyboardInterrupt
            seen.append(phase)

        with pytest.raises(KeyboardInterrupt):
            fit(lm, streams, tmp_path / "parts", 0.1, report=report)
        assert not set(seen) & before, "what was done before is not done again"
        before |= set(seen) - {stop}
    said: list[str] = []
    resumed = fit(lm, streams, tmp_path / "parts", 0.1, remark=said.append)
    assert said[0].startswith("goes on with comparison, ")
    assert not any("plan" in line for line in said)
    for file in ("own-texts.json", "level-costs.json", "long-contexts.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()
    contexts, factors = zip(*resumed_costs(tmp_path / "parts"), strict=True)
    assert contexts == (256, 320)
    assert factors[0] == (1, 1, 1)
    assert all(0.01 <= factor <= 100 for factor in factors[1])
    ours, theirs = (TrainedPolicy.from_pretrained(tmp_path / name / "policy") for name in ("whole", "parts"))
    for name, weights in ours.network.state_dict().items():  # equal but for the order of sums
        torch.testing.assert_close(weights, theirs.network.state_dict()[name], rtol=0.01, atol=0.01)
    assert [point.nats for point in resumed.points] == pytest.approx([point.nats for point in whole.points], abs=0.01)
    with pytest.raises(RunMismatchError, match="another minutes"):
        fit(lm, streams, tmp_path / "parts", 0.2)
    with pytest.raises(RunMismatchError, match="another data"):
        fit(lm, streams[:1], tmp_path / "parts", 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere.txt"], "nowhere.txt"),
        (["--minutes", "0.0001"], "--minutes: 0.0001 is too short"),
        (["--precision", "int3"], "--precision: unknown precision 'int3'"),
        (["--experts"], "a share of the experts needs a mixture of them"),
    ],
)
def test_mistakes_are_one_line(tiny_folder, texts, tmp_path, solm, arguments, message):
    code, said = solm("fit", tiny_folder, "--data", texts, "--out", tmp_path / "run", *arguments)
    assert code == 2
    lines = [line for line in said.err.splitlines() if line.startswith("solm: ") and "solm: cpu" not in line]
    assert len(lines) == 1
    assert message in lines[0]


def test_too_little_text_is_refused(tiny_folder, tmp_path, solm):
    (tmp_path / "short.txt").write_text("A few words.")
    code, said = solm("fit", tiny_folder, "--data", tmp_path / "short.txt", "--out", tmp_path / "run")
    assert (code, "holds 13 bytes" in said.err) == (2, True)
