"""The command line in processes: run to its end, started and left to run."""

import json
import multiprocessing
import os
import resource
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

PRELOADED = ["solm.cli.main", "solm.runtime.load", "solm.evaluation.perplexity", "helpers.commands"]
SHORT_EVAL = ["--space", "joint-8", "--budgets", "0.9,0.95", "--texts", "24", "--context", "90", "--length", "12",
        "--dtype", "float32"]  # fmt: skip


def command(arguments, folder, stdout, stderr, environment, most):
    """Entry of a child: the command line on one thread, in `folder`, its output in files. most: bytes that a file may
    grow to, as on a disk that is full."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for descriptor, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    torch.set_num_threads(1)
    if most is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    sys.argv = ["solm", *arguments]
    from solm.cli.main import main

    main()


def start(arguments, folder, stdout=os.devnull, stderr=os.devnull, most=None):
    """A process of the command line, forked from one that has imported torch: its start takes no seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    arguments = [*map(str, arguments)]
    process = context.Process(target=command, args=(arguments, folder, stdout, stderr, dict(os.environ), most))
    process.start()
    return process


def solm(*arguments: object, code: int = 0) -> subprocess.CompletedProcess:
    """The command line, run to its end with exit code `code`."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = start(arguments, Path.cwd(), out, err)
        process.join(300)
        assert process.exitcode is not None, "timed out"
        done = subprocess.CompletedProcess(arguments, process.exitcode, out.read_text(), err.read_text())
    assert done.returncode == code, done.stdout + done.stderr
    return done


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


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
