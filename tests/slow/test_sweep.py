"""Sweeps in processes that are killed, and on Ray."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from helpers.commands import points, solm
from solm.evaluation.sweep import sweep


def test_a_killed_sweep_goes_on(sweep_config, tmp_path):
    values = {key: value for key, value in sweep_config.model_dump(mode="json").items() if value is not None}
    (tmp_path / "sweep.yaml").write_text(json.dumps(values))
    command = [sys.executable, "-m", "solm.cli", "sweep", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out")]
    for seconds in (4.0, 6.0, 8.0):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    solm(*command[3:])
    sweep(sweep_config, tmp_path / "whole")
    assert points(tmp_path / "out") == points(tmp_path / "whole")


@pytest.mark.slow
def test_a_sweep_on_ray_survives_a_killed_worker_and_gives_the_same(sweep_config, tmp_path):
    ray = pytest.importorskip("ray")
    more = sweep_config.model_copy(update={"spaces": ("mlp-40", "mlp-50", "bits-5", "bits-6"), "texts": 24})
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
