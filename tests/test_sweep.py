"""Sweeps that are killed go on; pages made of any results, and of none that do not belong together."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from solm.core.errors import DamagedFileError, RunMismatchError, SolmError
from solm.evaluation.report.combined import render
from solm.evaluation.report.read import read_results
from solm.evaluation.sweep import RESULTS, SweepConfig, read_config, sweep
from test_cli import solm

TEXT = "The quick brown fox jumps over the lazy dog, and then it rests for a while. " * 120


@pytest.fixture
def config(tiny_folder, tmp_path) -> SweepConfig:
    (tmp_path / "text.txt").write_text(TEXT)
    return SweepConfig(
        models=(str(tiny_folder),), spaces=("mlp-40", "bits-5"), data=(str(tmp_path / "text.txt"),),
        budgets=(0.9, 0.95), texts=4, context=90, length=12, trials=2,
    )  # fmt: skip


def points(folder) -> list[list[dict]]:
    return [json.loads(line)["points"] for line in (folder / RESULTS).read_text().splitlines()]


def test_a_sweep_goes_on_and_equals_one_that_was_never_stopped(config, tmp_path):
    sweep(config, tmp_path / "whole")

    def stop(job: str, done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(config, tmp_path / "parts", stop)
    assert len(points(tmp_path / "parts")) == 1
    kept = next((tmp_path / "parts" / "jobs").glob("*.json")).stat().st_mtime_ns
    sweep(config, tmp_path / "parts")
    assert points(tmp_path / "parts") == points(tmp_path / "whole")
    assert kept in [path.stat().st_mtime_ns for path in (tmp_path / "parts" / "jobs").glob("*.json")]
    with pytest.raises(RunMismatchError, match="another sweep"):
        sweep(config.model_copy(update={"seed": 1}), tmp_path / "parts")


@pytest.mark.slow
def test_a_killed_sweep_goes_on(config, tmp_path):
    values = {key: value for key, value in config.model_dump(mode="json").items() if value is not None}
    (tmp_path / "sweep.yaml").write_text(json.dumps(values))
    command = [sys.executable, "-m", "solm.cli", "sweep", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out")]
    for seconds in (4.0, 6.0, 8.0):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    solm(*command[3:])
    sweep(config, tmp_path / "whole")
    assert points(tmp_path / "out") == points(tmp_path / "whole")


@pytest.mark.slow
def test_a_sweep_on_ray_survives_a_killed_worker_and_gives_the_same(config, tmp_path):
    ray = pytest.importorskip("ray")
    more = config.model_copy(update={"spaces": ("mlp-40", "mlp-50", "bits-5", "bits-6"), "texts": 24})
    sweep(more, tmp_path / "whole")
    killed = []

    def kill_one() -> None:
        while not killed:
            found = subprocess.run(["pgrep", "-f", "ray::run_job"], capture_output=True, text=True).stdout.split()
            for number in found[:1]:
                os.kill(int(number), signal.SIGKILL)
                killed.append(number)
            time.sleep(0.05)

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    sweep(more, tmp_path / "ray", ray_cores=1)
    ray.shutdown()
    assert killed
    assert points(tmp_path / "ray") == points(tmp_path / "whole")


def test_a_page_shows_every_result_and_stands_alone(config, tmp_path):
    sweep(config, tmp_path / "out")
    page = render(read_results([tmp_path / "out" / RESULTS]))
    assert page.count("<h2>results, line") == 2
    assert "uniform" in page
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")


def test_results_that_do_not_belong_together_are_refused(config, tmp_path):
    first, *_ = sweep(config, tmp_path / "out")
    content = json.loads(first.read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**content, "data_fingerprint": "else"}))
    with pytest.raises(SolmError, match="differ in text"):
        read_results([first, other])
    other.write_text(json.dumps({**content, "schema_version": 7}))
    with pytest.raises(DamagedFileError, match="schema version 7"):
        read_results([other])
    other.write_text(first.read_text()[:300])
    with pytest.raises(DamagedFileError, match="half-written"):
        read_results([other])
    page = tmp_path / "page.html"
    page.write_text("mine")
    solm("report", other, "--out", page, code=3)
    assert page.read_text() == "mine"


def test_a_bad_configuration_is_one_line(tmp_path):
    for values, words in (
        ({"data": ["a.txt"]}, "needs spaces"),
        ({"spaces": ["joint-8"]}, "nothing to do"),
        ({"spaces": ["joint-9"], "data": ["a"]}, "unknown action space"),
        ({"spaces": ["joint-8"], "data": ["a"], "budget": 3}, "budget"),
    ):
        with pytest.raises(SolmError, match=words):
            read_config(tmp_path / "sweep.yaml", values)
