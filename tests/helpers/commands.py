"""The command line in processes: run to its end, started and left to run, and under several ranks."""

import json
import multiprocessing
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

VALUES = ["--context", "100", "--length", "12", "--texts", "2", "--set", "layer=1", "--set", "width=16",
          "--set", "level_cost_texts=2", "--set", "level_cost_length=16", "--set", "level_cost_context=100",
          "--set", "dtype=float32"]  # fmt: skip
GRPO = ["--method", "grpo", "--space", "joint-8", "--context", "100", "--length", "6", "--texts", "4",
        "--rollouts", "3", "--set", "width=16", "--set", "dtype=float32", "--set", "checkpoint_every=1"]  # fmt: skip


def solm(*arguments: str, code: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-m", "solm.cli", *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def command(arguments, folder):
    """Entry of a child: the command line, in a folder of its own."""
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.argv = ["solm", *arguments]
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    from solm.cli.main import main

    main()


def start(arguments, folder):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["solm.cli.main", "solm.runtime.load", "solm.evaluation.sweep", "helpers.commands"])
    process = context.Process(target=command, args=(arguments, folder))
    process.start()
    return process


def limited(arguments, folder, most):
    """Entry of a child: the command line where no file can grow beyond `most` bytes, as on a disk that is full."""
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.argv = ["solm", *arguments]
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = open("stderr.txt", "w")  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    from solm.cli.main import main

    main()


def everything_is_readable(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir() or path.name.startswith(".") or "tensorboard" in path.parts:
            continue
        if path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix in (".json", ".partial"):
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            for line in path.read_text().splitlines()[:-1]:
                json.loads(line)


def train(processes, model, out, *options, launcher="torchrun"):
    command = [sys.executable, "-m", "solm.cli"]
    if launcher == "accelerate":
        accelerate = str(Path(sys.executable).with_name("accelerate"))
        command = [accelerate, "launch", "--cpu", "--num_processes", str(processes), "--num_machines", "1",
                   "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(free_port()), "-m",
                   "solm.cli"]  # fmt: skip
    elif processes > 1:
        torchrun = str(Path(sys.executable).with_name("torchrun"))
        command = [torchrun, "--nproc-per-node", str(processes), "--master-port", "0", "--rdzv-backend", "c10d",
                   "--rdzv-endpoint", "127.0.0.1:0", "-m", "solm.cli"]  # fmt: skip
    done = subprocess.run(
        [*command, "train", "--model", str(model), "--out", str(out), *map(str, options)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("policy:") == 1


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
