"""Commands that are interrupted by a signal."""

import signal
import subprocess
import sys
import time


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
    assert "finished parts are kept. The same command continues" in errors
    assert (out / "checkpoint.safetensors").exists()
