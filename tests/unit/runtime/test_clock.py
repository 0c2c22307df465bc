"""Budgets in time on a model without a policy and without timings: what is measured, kept, and met."""

import json
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import solm
from helpers.models import tiny_model
from helpers.timings import made_clock
from solm.cli.main import main
from solm.core.clock import RunningClock, StepClock
from solm.core.cost import relative_bytes
from solm.core.errors import BudgetError
from solm.policies.calibration import Calibration
from solm.runtime import batch, clock, language_model

PROMPT = "the fox jumps over the dog " * 4


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for engine in os.scandir(os.environ["SOLM_CACHE"]):
        if engine.name.startswith("engine-"):
            (tmp_path / engine.name).symlink_to(os.path.realpath(engine.path))
    monkeypatch.setenv("SOLM_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def plain_lm(byte_tokenizer, cache):
    """A tiny model on the engine, under no policy."""
    with solm.attach(tiny_model("llama", torch.float32), tokenizer=byte_tokenizer, backend="cpu") as lm:
        yield lm


@pytest.fixture
def known(monkeypatch):
    """Step times that were not measured; how often they were asked for."""
    asked = []

    def measure(lm, progress):
        asked.append(lm)
        return made_clock(model=lm.name, backend=lm.backend.name, error=0.2 if len(asked) == 1 else 0.01)

    monkeypatch.setattr(language_model, "measure_clock", measure)
    return asked


def test_any_model_takes_budgets_in_time(plain_lm, known, cache):
    before = plain_lm.generate(PROMPT, budget="keep=0.8", max_new_tokens=4).trace.ids
    told = []
    lm = plain_lm.timed(lambda what, done, total: told.append((what, done <= total)))
    assert {what for what, _ in told} == {"calibrating the model, once"}
    assert all(fits for _, fits in told)
    known_clock = lm.clock.now
    for budget, share in ((0.85, 0.85), ("speed=1.1", 1 / 1.1), ("ms=9", 9 / 10.2)):
        lm.clock = RunningClock(known_clock)  # replies move it
        reply = plain_lm.generate(PROMPT, budget=budget, max_new_tokens=120, eos_token_id=-1)
        assert reply.compute.requested["time"] == pytest.approx(share, abs=0.01)
        assert reply.compute.realised["time"] == pytest.approx(share, abs=0.02)
        assert "loss" not in reply.compute.realised
    replies = plain_lm.generate([PROMPT] * 3, budget=["keep=0.8", "speed=1.2", None], max_new_tokens=4)
    assert replies[0].trace.ids == before, "budgets that are not in time mean what they meant"
    assert len(known) == 1
    assert lm.sparsity.thresholds is not None
    assert plain_lm.sparsity.thresholds is None
    assert sum(file.suffix == ".json" for file in cache.iterdir()) == 2


def test_budgets_of_a_mixture_leave_out_the_experts_that_hold_least(byte_tokenizer, cache, known):
    model = tiny_model("qwen3_moe", torch.float32, num_experts_per_tok=4)
    with solm.attach(model, tokenizer=byte_tokenizer, backend="cpu", sparsity="experts") as lm:
        rules = lm.timed().sparsity
        assert (rules.thresholds.sites, rules.allocation.sites) == (1, 1)
        lm.timed().clock = RunningClock(made_clock(model=lm.name, backend=lm.backend.name))
        visited = []
        for budget in (0.8, 0.9):
            reply = lm.generate(PROMPT, budget=budget, max_new_tokens=120, eos_token_id=-1)
            assert reply.compute.realised["time"] == pytest.approx(budget, abs=0.02)
            visited.append(reply.compute.realised["mlp"])
        assert 0.25 <= visited[0] < visited[1] < 1


def test_a_clock_that_is_unsure_refuses_only_what_bytes_rule_out(plain_lm, known):
    known_budgets = plain_lm.timed().budgets()
    unsure, sure = (
        replace(known_budgets, timings=made_clock(mlp_ms=0.0, page_ms=0.0, error=error)) for error in (0.2, 0.01)
    )
    assert unsure.budget(0.9, 200) == unsure.lowest(200)
    for budgets, asked in ((unsure, 0.1), (unsure, "ms=0.1"), (sure, 0.9)):
        with pytest.raises(BudgetError, match="unreachable"):
            budgets.budget(asked, 200)


def test_a_disturbed_measurement_does_not_make_steps_leave_out_nearly_all(plain_lm):
    steps = clock._Steps(plain_lm, float("inf"), lambda: None)
    steps.round()
    for ratios in steps.ratios:
        ratios[:] = [0.7, 1.0, 1.6]  # as if steps took what they please, and saved nothing
    made = steps.clock()
    assert made.error > 0.03
    left_out = 0.5 * made.mlp_ms / made.dense_ms(64)
    assert left_out > 0.4 * (1 - relative_bytes(np.array([1, 0.5, 1]), 64, plain_lm.shapes, plain_lm.sparsity)) - 0.02


def test_a_budget_that_a_slower_machine_no_longer_meets_is_the_lowest(plain_lm, known):
    idle = replace(plain_lm.timed().budgets(), timings=made_clock(error=0.01))
    busy = replace(idle, timings=made_clock(error=0.01, dense=1.5, cheap=1.8))
    least = idle.time_floor(200)
    for asked in (least + 0.01, f"ms={(least + 0.01) * idle.timings.dense_ms(200)}"):
        assert busy.budget(asked, 200) == busy.lowest(200)
    with pytest.raises(BudgetError, match="unreachable"):
        busy.budget(least - 0.01, 200)


def test_a_session_that_has_read_the_prompt_goes_on_under_the_calibration(plain_lm, known):
    ids = plain_lm.encode(PROMPT)
    session = plain_lm.session(ids.shape[1])
    session.prefill(ids[:, :-1])
    options = {"budget": 0.9, "max_new_tokens": 6}
    stream = plain_lm.stream(ids, session=session, **options)
    assert [token.id for token in stream] == plain_lm.generate(ids, **options).trace.ids
    assert stream.lm is plain_lm.timed()


def test_what_is_no_budget_in_time_measures_nothing(plain_lm, known):
    for wrong in ("soon", 0.0):
        with pytest.raises(BudgetError):
            plain_lm.generate(PROMPT, budget=wrong)
    reply = plain_lm.generate(PROMPT, budget="loss=0.1", max_new_tokens=4)
    assert reply.compute.verified, "without a curve a loss is verified"
    assert not known


def test_measurements_are_kept_made_anew_where_damaged_and_repeated_where_unsure(
    plain_lm, known, cache, caplog, monkeypatch
):
    def again():
        return plain_lm.with_policy(None).timed()

    again()
    monkeypatch.setattr(language_model, "calibrate", lambda lm, progress: pytest.fail("it is kept"))
    assert again().clock.now.error == 0.2
    assert len(known) == 1, "not at once, so that nobody waits at every start"
    file = next(cache.glob("*.stepclock.json"))
    os.utime(file, (0, 0))
    assert again().clock.now.error == 0.01
    assert len(known) == 2
    os.utime(file, (0, 0))
    again()
    assert len(known) == 2, "what is sure is kept"
    file.write_text(file.read_text()[:-20])
    again()
    assert len(known) == 3
    assert [record.message.count("\n") for record in caplog.records if "made anew" in record.message] == [0]
    StepClock.model_validate_json(file.read_text())
    Calibration.model_validate_json(next(cache.glob("*.calibration.json")).read_text())


def test_the_machine_is_timed_in_the_time_given(plain_lm, cache):
    lm = plain_lm.with_policy(None)
    found = clock.measure_clock(lm, lambda *_: None, 0.3)
    assert found.base_ms > 0
    assert found.mlp_ms >= 0
    assert found.contexts[0] == 64
    assert found.model == lm.name
    assert clock.measure_clock(cpu_policy(lm), lambda *_: None, 0.2).error >= 0


def cpu_policy(lm):
    from helpers.policies import under_values

    return under_values(lm, solm.SparsityConfig(window=32))


def test_a_line_through_few_and_noisy_steps_stays_within_reason():
    extra, rate = clock._line([0.1, 0.3, 0.5], [0.0, -0.1, -0.2])
    assert (extra, rate) == (pytest.approx(0.05, abs=0.01), pytest.approx(0.5, abs=0.03))
    assert clock._line([0.1, 0.3], [0.5, 0.6]) == (pytest.approx(0.12), 0.0)
    assert clock._line([0.0, 0.0], [0.0, 0.0])[1] == 0


def test_replies_move_the_clock_and_dense_steps_in_between_change_no_text(plain_lm, known, monkeypatch):
    options = {"budget": 0.9, "max_new_tokens": 60, "eos_token_id": -1}
    lm, due = plain_lm.timed(), []
    begun = lm.clock.now
    first = plain_lm.generate(PROMPT, **options)
    assert lm.clock.now.dense_ms(100) < 0.9 * begun.dense_ms(100), "the tiny model is faster than was said"

    class Often(RunningClock):
        def stepped(self, shares, keys, milliseconds):
            due.append(min(shares) == 1)
            return super().stepped(shares, keys, milliseconds) or min(shares) < 1

    lm.clock = Often(begun)
    again = plain_lm.generate(PROMPT, **options)
    assert again.trace.ids == first.trace.ids
    assert again.compute.realised == first.compute.realised
    assert (due.count(True), due.count(False)) == (58, 59), "none after the last token"
    assert lm.budgets(lm.policy("static")).timings is lm.clock.now
    assert batch.DENSE == (1.0, 1.0, 16.0)


def test_the_command_measures_and_its_clock_gives_the_text_again(
    tiny_folder, tmp_path, cache, known, capsys, monkeypatch
):
    def run(*arguments):
        common = ["solm", "generate", "--model", str(tiny_folder), "--max-new-tokens", "12", "--json", *arguments]
        monkeypatch.setattr(sys, "argv", [*common, PROMPT])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert not ended.value.code, said.err
        return json.loads(said.out), said.err

    found, said = run("--budget", "speed=1.1")
    assert "calibrating the model, once" in said
    assert found["realised"]["time"] == pytest.approx(1 / 1.1, abs=0.03)
    assert "to within 0.200 of a dense step" in found["measured_on"]
    (tmp_path / "clock.json").write_text(json.dumps(found["clock"] | {"cheap": 1.05}))
    frozen, said = run("--budget", "speed=1.1", "--timings", str(tmp_path / "clock.json"))
    assert len(known) == 1
    assert frozen["clock"]["cheap"] == 1.05
    assert frozen["realised"]["mlp"] < found["realised"]["mlp"], "slower steps have to leave out more"
    assert run("--budget", "speed=1.1", "--timings", str(tmp_path / "clock.json"))[0]["tokens"] == frozen["tokens"]


def test_an_idle_moment_makes_an_unsure_clock_surer_and_is_left_at_once(plain_lm, known, cache, monkeypatch):
    lm = plain_lm.timed()
    monkeypatch.setattr(language_model, "measure_clock", clock.measure_clock)
    assert lm.clock.now.error == 0.2
    lm.time_again(lambda: True)
    assert lm.clock.now.error == 0.2, "there was something better to do"
    lm.clock = RunningClock(lm.clock.now.model_copy(update={"error": 1e9}))
    lm.time_again(lambda: False)
    assert lm.clock.now.error < 1e9
    kept = StepClock.model_validate_json(next(cache.glob("*.stepclock.json")).read_text())
    assert kept == lm.clock.now
