"""Times of steps: what is measured, what is made of it, and what is refused."""

import json
import sys

import pytest
import torch

import solm
from helpers.models import tiny_model
from helpers.policies import SPARSITY, under_values
from helpers.timings import made_curve
from solm.cli.main import main
from solm.core.cost import StepTimings
from solm.core.errors import BudgetError, DamagedFileError, PolicyMismatchError
from solm.core.files import read_model
from solm.evaluation.step_timing import measure
from solm.runtime.language_model import LanguageModel
from solm.runtime.load import noted

KNOWN = {
    "model": "m", "backend": "cpu int8", "threads": 2, "contexts": (100, 1000),
    "attention": (0.1, 1.0), "mlp": (0.4, 0.6, 1.0),
    "attention_ms": ((4.0, 5.0), (5.0, 9.0)), "mlp_ms": ((3.0, 4.0, 5.0), (7.0, 8.0, 9.0)), "joint_ms": (2.0, 3.0),
    "gigabytes_per_second": 30.0,
}  # fmt: skip


def test_another_machine_is_told_once_and_budgets_still_work(tiny_lm, caplog):
    environment = {"machine": {"processor": "a fast one"}}
    known = StepTimings(**KNOWN, environment=environment)
    assert known.measured_on == "cpu int8, 2 threads of a fast one"
    assert known.elsewhere("cpu int8", 2, "a fast one") is None
    for here in (("cpu int4", 2, "a fast one"), ("cpu int8", 1, "a fast one"), ("cpu int8", 2, "a slow one")):
        said = known.elsewhere(*here)
        assert "were measured on cpu int8, 2 threads of a fast one, and this is" in said
        assert "\n" not in said
    assert StepTimings(**KNOWN).elsewhere("cpu int8", 2, "a slow one") is None, "the file does not say"

    policy = under_values(tiny_lm, SPARSITY).trained
    policy.curve = made_curve(SPARSITY, tiny_lm.shapes, environment=environment)

    def told() -> list[str]:
        return [record.levelname for record in caplog.records if "a fast one" in record.message]

    lm = noted(tiny_lm.with_policy(policy))
    assert told() == ["WARNING"]
    solm.attach(tiny_model("llama", torch.float32), policy).detach()
    assert told() == ["WARNING"] * 2
    assert lm.budget("speed=1.2", 500).net < 1
    assert lm.with_policy(None).timings is None, "they belong to the policy"


def test_high_halves_of_weights_take_their_own_time(tiny_folder):
    StepTimings(**KNOWN, halved_ms=(2.0, 6.0))
    with pytest.raises(ValueError, match="halved_ms"):
        StepTimings(**KNOWN, halved_ms=(2.0,))
    with solm.load(str(tiny_folder), sparsity=solm.SparsityConfig.preset("nested")) as lm:
        found = measure(lm, torch.randint(3, 259, (1, 201)), (100, 200), rounds=1)
        assert len(found.halved_ms) == 2
        found.check(lm.name, lm.backend.name, lm.sparsity)
        with pytest.raises(PolicyMismatchError, match="bits of weights"):
            found.model_copy(update={"halved_ms": ()}).check(lm.name, lm.backend.name, lm.sparsity)


def test_disturbed_measurements_are_told_by_the_dense_step_and_the_lower_times_kept():
    quiet = StepTimings(**KNOWN)
    assert max(quiet.disturbances) == 0
    changes = {"mlp_ms": ((3.0, 2.0, 7.5), (7.0, 8.0, 9.0)), "joint_ms": (1.0, 9.0)}
    noisy = StepTimings(**KNOWN | changes)
    assert max(noisy.disturbances) == pytest.approx(0.5)
    both = quiet.lowest(noisy)
    assert both.mlp_ms == ((3.0, 2.0, 5.0), (7.0, 8.0, 9.0))
    assert both.joint_ms == (1.0, 3.0)
    assert max(both.disturbances) == 0
    names = ("contexts", "attention_ms", "mlp_ms", "joint_ms")
    second = StepTimings(**KNOWN | {name: (KNOWN | changes)[name][1:] for name in names})
    assert noisy.disturbances == (pytest.approx(0.5), 0)
    assert noisy.lowest(second) == noisy, "the other context keeps its times"
    faster = second.model_copy(update={"mlp_ms": ((1.0, 8.0, 9.0),), "joint_ms": (2.0,)})
    assert noisy.lowest(faster).mlp_ms == (noisy.mlp_ms[0], (1.0, 8.0, 9.0))
    assert noisy.lowest(faster).joint_ms == (1.0, 2.0)


def test_a_measured_model_takes_budgets_in_milliseconds(value_lm):
    lm = value_lm
    with pytest.raises(BudgetError, match="needs step timings of this machine"):
        lm.budget("ms=3")
    timings = measure(lm, torch.randint(3, 259, (1, 201)), (100, 200), rounds=1)
    assert len(timings.mlp_ms) == 2
    dense = sum(timings.dense_ms) / 2
    lm = LanguageModel(lm.backend, lm.tokenizer, lm.trained, lm.sparsity, lm.name, timings)
    assert lm.budget(f"ms={10 * dense}").net == 1
    with pytest.raises(BudgetError, match="'soon' is not a number"):
        lm.budget("ms=soon")
    with pytest.raises(PolicyMismatchError, match="run solm bench"):
        StepTimings(**KNOWN).check(lm.name, lm.backend.name, lm.sparsity)


@pytest.mark.parametrize(
    "change",
    [
        {"attention_ms": [[1.0, 2.0]]}, {"mlp_ms": [[1.0, 2.0, 0.0], [1.0, 2.0, 3.0]]}, {"contexts": [1000, 100]},
        {"format": 2}, {"extra": 1},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_damaged_file_is_refused(tmp_path, change):
    path = tmp_path / "timings.json"
    path.write_text(json.dumps(KNOWN | change))
    with pytest.raises(DamagedFileError, match=r"timings.json is damaged"):
        read_model(path, StepTimings)
    path.write_text(json.dumps(KNOWN)[:-20])
    with pytest.raises(DamagedFileError):
        read_model(path, StepTimings)


def test_the_command_measures_and_its_file_is_used(tiny_folder, tmp_path, monkeypatch, capsys):
    def solm(*arguments):
        monkeypatch.setattr(sys, "argv", ["solm", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr()

    out = tmp_path / "timings.json"
    common = ["--model", tiny_folder, "--backend", "torch"]
    code, said = solm("bench", *common, "--context", "90,200", "--rounds", "1", "--out", out)
    assert not code, said.err
    assert "pages 0.1, MLP 0.4" in said.out
    assert "16 tokens" in said.out
    assert "guesses made where 90% are accepted" in said.out
    assert read_model(out, StepTimings).contexts == (90, 200)
    code, said = solm("generate", *common, "--timings", out, "--budget", "ms=1000", "--max-new-tokens", "4", "hi")
    assert not code, said.err
    assert "net keep 1.000" in said.err
    code, said = solm("bench", *common, "--context", "5000")
    assert (code, "context of 512" in said.err) == (2, True)
    code, said = solm("bench", *common, "--context", "a")
    assert (code, "'a' is not a list" in said.err) == (2, True)
