"""Servers under load: tokens per second, time to the first token and per token, for 1, 4 and 16 clients.

Every server runs as a process of its own, all at the same time; clients take turns at them, so that one number of
clients is measured on all servers within minutes. Requests stream greedy chat replies to texts that no other request
shares, but for the beginning of --shared tokens. Other servers and the torch backend compute in --dtype, by default
bfloat16 where the processor has it and float32 elsewhere. With --other the cpu backend keeps the numbers of the file.

    python evidence/bench/serve.py                       # transformers serve; torch, cpu in bfloat16 and in int8
    python evidence/bench/serve.py --model FILE.gguf --other "NAME=COMMAND {port}"  # beside other servers
    python evidence/bench/serve.py --model FILE.gguf --serve "--policy auto" --budget loss=0.05  # and under a budget

Peak memory is the sum of the largest resident sizes of a server's processes, mapped pages counted.
"""

import argparse
import asyncio
import os
import shlex
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from evidence.bench.clients import DENSE, WHOLE, Load, line, some_texts
from evidence.bench.common import MODEL, Kept, finish, parser
from evidence.bench.server_process import free_port, on_cpu, ours, server
from solm.backends.torch.load import load_base

SERVERS = {
    "torch": ["--backend", "torch"],
    "cpu bfloat16": ["--backend", "cpu", "--precision", "bfloat16"],
    "cpu int8": ["--backend", "cpu", "--precision", "int8"],
}


def commands(options: Any, folder: Path) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """By name, how a server is started and what its requests say beside the usual."""
    if options.other or options.model != MODEL:
        if any("{folder}" in each for each in options.other):
            _save(options, folder / "base")
        others = [each.replace("{folder}", str(folder / "base")).partition("=") for each in options.other]
        return {"solm": (on_cpu(options), DENSE | WHOLE)} | {
            name: (shlex.split(command), WHOLE) for name, _, command in others
        }
    _save(options, folder / "base")
    transformers = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder / "base")]
    found: dict[str, tuple[list[str], dict[str, Any]]] = {}
    if options.peer:
        found["transformers"] = ([*transformers, "--device", "cpu"], {})
    dtype = {"torch": ["--dtype", options.dtype]}
    return found | {name: (ours(*how, *dtype.get(name, [])), DENSE | WHOLE) for name, how in SERVERS.items()}


def _save(options: Any, folder: Path) -> None:
    """The model in a folder of transformers' form."""
    model, tokenizer = load_base(options.model, options.dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def throughput(options: Any) -> dict[str, Any]:
    """Every server in turn, for every number of clients: medians over rounds, and peak memory."""
    results, kept = dict[str, dict[str, dict[str, float]]](), Kept(options)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        loads, running = {}, {}
        for name, (command, more) in commands(options, Path(folder)).items():
            log = Path(folder) / f"{len(loads)}.log"
            running[name] = stack.enter_context(server(command, free_port(), log))
            address = running[name].address
            if name == "transformers":
                model = str(Path(folder) / "base")
            else:
                model = httpx.get(f"{address}/v1/models").json()["data"][0]["id"]
            loads[name] = Load(address, model, more, options.tokens)
        name = "solm" if "solm" in loads else "cpu int8"
        budget = options.budget or ("keep=0.6" if name == "cpu int8" else None)
        if budget and name in loads:
            more = {"efficiency": {"budget": budget}} | WHOLE
            loads[f"{name} at {budget}"] = Load(loads[name].address, "served", more, options.tokens)
        for clients in options.clients:
            found = kept.get(f"{clients} clients", lambda: in_rounds(options, loads, clients))  # noqa: B023
            for name, medians in found.items():
                results.setdefault(name, {})[str(clients)] = medians
        peaks = {name: one.peak_gib for name, one in running.items()}
    return {"servers": results, "peak_gib": peaks}


def in_rounds(options: Any, loads: dict[str, Load], clients: int) -> dict[str, dict[str, float]]:
    """By server, the medians of its rounds with so many clients."""
    each, found = max(1, options.replies // clients), dict[str, list[dict[str, float]]]()
    count = clients * each * (options.rounds + 1) * len(loads)
    texts = some_texts(options.model, count, options.prompt, clients, options.shared)
    for turn in range(options.rounds + 1):
        for name, load in loads.items():
            taken, texts = texts[: clients * each], texts[clients * each :]
            print(f"round {turn} of {options.rounds}: {name}", file=sys.stderr, flush=True)
            numbers = asyncio.run(load.run(clients, each, taken)).numbers()
            if turn:
                found.setdefault(name, []).append(numbers)
    return {name: middle(runs) for name, runs in found.items()}


def middle(runs: list[dict[str, float]]) -> dict[str, float]:
    """The median of every number over rounds."""
    return {key: statistics.median([run[key] for run in runs]) for key in runs[0]}


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    options = parser(__doc__, "dtype", "rounds")
    options.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    options.add_argument("--replies", type=int, default=8, help="replies per round")
    options.add_argument("--tokens", type=int, default=64, help="tokens of a reply")
    options.add_argument("--prompt", type=int, default=96, help="tokens of a prompt, without the chat template's")
    options.add_argument("--shared", type=int, default=0, help="tokens more that all prompts begin with")
    options.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True, help="also transformers serve")
    options.add_argument("--other", action="append", default=[], metavar="NAME=COMMAND", help="another server")
    options.add_argument("--serve", default="", help="more options of solm serve, as one text")
    options.add_argument("--budget", help="of a second set of requests to our cpu server")
    asked = options.parse_args()
    for each in asked.other:
        if not all(each.partition("=")):
            options.error(f"--other: {each!r} is not NAME=COMMAND")
    results = throughput(asked)
    lines = [line(f"{name}, {n} clients", run) for name, runs in results["servers"].items() for n, run in runs.items()]
    lines += [f"{name:34} peak {peak:.2f} GiB" for name, peak in results["peak_gib"].items()]
    asked.other = [each.partition("=")[0] for each in asked.other]  # whose commands have paths of this machine
    finish("serve", asked, results, lines)


if __name__ == "__main__":
    main()
