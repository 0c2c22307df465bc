"""Decoding beside processes that keep cores busy: what is left of an engine's tokens per second.

    python benchmarks/neighbours.py --model FILE.gguf --busy 0,1,2 --peers llama.cpp --json

Busy processes count in a loop and are pinned nowhere. In every round each engine decodes one row for --seconds beside
each number of them, on as many threads as torch uses; a figure is the median over rounds of tokens per second, stalls
included. Run it where nothing else runs.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import peers
from common import draw_text, finish, in_turns, parser, spread
from solm.backends.names import gguf_of
from solm.core.errors import SolmError
from timed_engines import Ours, Theirs, Timed

SETTLED = 0.3
"""Seconds after which busy processes have started and been placed on cores."""


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Inside the block, `count` processes each keep a core busy."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(SETTLED)
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()


def tokens_per_second(engine: Timed, seconds: float) -> float:
    """Of dense steps of one row that has been read."""
    run = engine.turns(1)["dense"]
    run()  # threads have found their cores, or lost them
    taken: list[float] = []
    while sum(taken) < 1e3 * seconds and not engine.error:
        taken += run()
    return 1e3 * len(taken) / sum(taken)


def checked(options: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, `busy` and `peers` as lists; ends with one line and code 2 for one that is wrong."""
    asked = options.parse_args()
    try:
        asked.busy = [int(part) for part in asked.busy.split(",")]
    except ValueError:
        asked.busy = [-1]
    if min(asked.busy) < 0 or 0 not in asked.busy:
        options.error("--busy: must be numbers from 0 on with 0 among them, separated by commas")
    if asked.rounds < 1:
        options.error(f"--rounds {asked.rounds}: must be at least 1")
    if not 0 < asked.seconds <= 600:
        options.error(f"--seconds {asked.seconds}: must be in (0, 600]")
    asked.peers = asked.peers.split(",") if asked.peers else []
    for name in set(asked.peers) - set(peers.NAMES):
        options.error(f"--peers {name}: must be among {', '.join(peers.NAMES)}")
    try:
        file = gguf_of(asked.model)
    except SolmError as error:
        options.error(str(error))
    if file is None and asked.peers:
        options.error(f"--peers: they read GGUF files, and {asked.model} is not one")
    return asked


def main() -> None:
    options = parser(__doc__, "dtype", "rounds")
    options.set_defaults(rounds=3, policy=None, budgets="1")
    options.add_argument("--busy", default="0,1,2", help="numbers of busy processes")
    options.add_argument("--context", type=int, default=64, help="tokens seen before the steps")
    options.add_argument("--seconds", type=float, default=2, help="how long an engine decodes at a time")
    options.add_argument("--peers", help="beside these installed peers, separated by commas")
    options.add_argument(
        "--peer-python", action="append", default=[], help="the Python of another environment to look for peers in"
    )
    asked = checked(options)
    file = gguf_of(asked.model)
    ours = Ours(asked, "auto")
    engines: dict[str, Timed] = {"solm": ours}
    for name, peer in (peers.find(asked, file, torch.get_num_threads()) if file and asked.peers else {}).items():
        engines[name] = Theirs(peer)
    text = draw_text(ours.lm, 1, asked.context + 1)
    for engine in engines.values():
        engine.texts(text)
        engine.read(0)

    def beside(engine: Timed, count: int) -> float:
        with busy_processes(count):
            return tokens_per_second(engine, asked.seconds)

    turns = {
        (name, count): lambda engine=engine, count=count: beside(engine, count)  # type: ignore[misc]
        for name, engine in engines.items()
        for count in asked.busy
    }
    results: dict[str, Any] = {name: {} for name in engines}
    for (name, count), rates in in_turns(turns, asked.rounds).items():
        results[name][str(count)] = {"tokens_per_second": spread(rates)}
    lines = [f"{'engine':12} {'busy':>4} {'tokens/s':>24} {'kept':>6}"]
    for name, by_count in results.items():
        alone = by_count["0"]["tokens_per_second"]["median"]
        for count, found in by_count.items():
            rates = found["tokens_per_second"]
            found["kept"] = rates["median"] / alone
            shown = f"{rates['median']:.1f} ({rates['low']:.1f}, {rates['high']:.1f})"
            lines.append(f"{name:12} {count:>4} {shown:>24} {found['kept']:6.2f}")
    finish("neighbours", asked, results, lines)


if __name__ == "__main__":
    main()
