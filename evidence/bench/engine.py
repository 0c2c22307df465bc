"""The cpu backend on a model's file: prompts, decode steps, memory and start, beside peers on the same file.

    python evidence/bench/engine.py --model FILE.gguf --contexts 64,1024,4096 --rows 1,16 --peers --json
    python evidence/bench/engine.py --precision bfloat16,int8,auto --policy builtin:smollm2-135m-cpu --json

Engines take turns on this machine, with the same threads for everyone. Prompts: tokens per second of reading one text
after another, every engine the same text before the next. Steps: a figure is the median over rounds of a round's median
step, each after the same texts. They run as greedy generation runs them. A precision such as `int8+int8` has its KV
cache in int8. With a policy, `policy 1` decides and then spends everything: what it takes longer than `dense` is what
a decision costs. Starts: seconds from the start of a fresh process to its first token, imports and loading included,
and the peak of its resident memory; ours with an empty cache folder, then with the compiled engine in it, then with the
weights as well. From 4,096 tokens on a prompt is read once and not for every round.

Peers: llama.cpp with and without its fused attention, its caches in float16, and OpenVINO GenAI, where they are
installed here or in the environments of --peer-python; transformers, dense and of one row, where it is named. Where
they are named, llama.cpp and OpenVINO also with prompt lookup: they go on with a text greedily, guessing the next
tokens from it, and a figure is milliseconds over tokens. It depends on the text how often they guess right.
"""

import argparse
from importlib.metadata import version
from statistics import median
from typing import Any

import torch

from evidence.bench import peers, starts
from evidence.bench.common import STEPS, Kept, draw_text, finish, in_turns, parser, spread
from evidence.bench.timed_engines import TRANSFORMERS, Ours, Theirs, Timed, shown
from solm.backends.cpu.engine import check_precision
from solm.backends.cpu.files.sources import source_of
from solm.backends.cpu.library import NATIVE, asked_engine, choose_engine
from solm.backends.names import gguf_of
from solm.core.errors import SolmError
from solm.core.provenance import memory_bandwidth

READ_ONCE = 4096
"""Tokens of a context from which on one text is read, and not one for every round."""


def measure(engines: dict[str, Timed], texts: torch.Tensor, rows: list[int], rounds: int) -> dict[str, dict[str, Any]]:
    """At one context, texts [T, context + 1] of at least `rows`: by engine, `prefill_tokens_per_second`, and `step_ms`
    by setting and number of rows, and of the cpu backend `known_ms` by the number of known tokens of a row that one
    pass computes. Without engines that failed."""
    for engine in engines.values():
        engine.texts(texts)
    # The first text warms up, where there are several.
    read: dict[str, list[float]] = {name: [] for name in engines}
    for row in range(len(texts)):
        for name, engine in engines.items():
            taken = engine.read(row)
            if row or len(texts) == 1:
                read[name].append(1e3 * (texts.shape[1] - 1) / taken)
    found: dict[str, Any] = {
        name: {"prefill_tokens_per_second": spread(rates), "step_ms": {}} for name, rates in read.items()
    }
    for count in rows:
        turns = {
            (name, setting): lambda run=run: median(run())  # type: ignore[misc]
            for name, engine in engines.items()
            for setting, run in engine.turns(count).items()
        }
        for (name, setting), taken in in_turns(turns, rounds).items():
            found[name]["step_ms"].setdefault(setting, {})[str(count)] = spread(taken)
    for name, engine in engines.items():
        if isinstance(engine, Ours) and not engine.stock:
            found[name]["known_ms"] = engine.known_ms(rounds)
    return {name: one for name, one in found.items() if not engines[name].error}


def checked(options: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with lists of numbers and names as lists; ends with one line and code 2 for one that is wrong."""
    asked = options.parse_args()
    for name in ("contexts", "rows"):
        try:
            values = [int(part) for part in getattr(asked, name).split(",")]
        except ValueError:
            values = [0]
        if min(values) < 1:
            options.error(f"--{name} {getattr(asked, name)}: must be numbers from 1 on, separated by commas")
        setattr(asked, name, values)
    if asked.rounds < 1:
        options.error(f"--rounds {asked.rounds}: must be at least 1")
    asked.precision = asked.precision.split(",")
    asked.peers = asked.peers.split(",") if asked.peers else []
    known = (*peers.NAMES, *peers.LOOKUPS, TRANSFORMERS)
    libraries = {name.partition(":")[0] for name in asked.peers} - {TRANSFORMERS}
    for name in libraries - set(known):
        options.error(f"--peers {name}: must be among {', '.join(known)}")
    try:
        for kind in asked.precision:
            precision, _, cache = kind.partition("+")
            check_precision(precision, cache or "auto")
        file, held = gguf_of(asked.model), source_of(asked.model).spec.context
    except SolmError as error:
        options.error(str(error))
    if max(asked.contexts) + STEPS > held:
        options.error(f"--contexts {max(asked.contexts)}: with {STEPS} steps more than the {held} of {asked.model}")
    if file is None and libraries:
        options.error(f"--peers: they read GGUF files, and {asked.model} is not one")
    return asked


def main() -> None:
    options = parser(__doc__, "dtype", "rounds")
    options.add_argument("--contexts", default="64,1024,4096", help="tokens seen before the steps")
    options.add_argument(
        "--precision", default="auto",
        help="auto, float32, bfloat16, int8, nested; +int8: KV cache; several separated by commas",
    )  # fmt: skip
    options.add_argument("--rows", default="1", help="rows of a step")
    options.add_argument("--policy", help="also the steps that this policy decides")
    options.add_argument("--budgets", default="1,0.6", help="net keeps of the policy")
    options.add_argument(
        "--peers", nargs="?", const=",".join(peers.NAMES),
        help="beside all installed peers, or beside those named here; openvino:Q4_0: with a file of that type",
    )  # fmt: skip
    options.add_argument(
        "--peer-python", action="append", default=[], help="the Python of another environment to look for peers in"
    )
    options.add_argument("--no-starts", action="store_true", help="leave out how long fresh processes take")
    asked = checked(options)
    bandwidth, file, kept = memory_bandwidth(), gguf_of(asked.model), Kept(asked)
    others: dict[str, peers.Asked] = {}
    if file is not None and asked.peers:
        others = peers.find(asked, file, torch.get_num_threads())
    ours: dict[str, Any] = {kind: {} for kind in asked.precision}
    theirs: dict[str, Any] = {name: {} for name in others}
    if not asked.no_starts:
        plain = {name: peer for name, peer in others.items() if peer.name not in peers.LOOKUPS}
        ours, started = kept.get("starts", lambda: starts.measure(asked, plain))
        theirs |= started
    loaded = {kind: Ours(asked, kind) for kind in asked.precision}
    capability = torch.backends.cpu.get_cpu_capability()
    variant = choose_engine(*asked_engine()).variant
    variant += f" ({capability})" if variant == NATIVE else ""
    for kind, engine in loaded.items():
        ours[kind] = {"weights": str(engine.lm.backend.dtype), "instructions": variant} | ours[kind]
    engines: dict[str, Timed] = dict(loaded)
    if TRANSFORMERS in asked.peers:
        engines[TRANSFORMERS] = made = Ours(asked, "auto", stock=True)
        theirs[TRANSFORMERS] = {
            "weights": made.precision, "version": version("transformers"), "instructions": capability,
        }  # fmt: skip
    for name, peer in others.items():
        if "error" not in theirs[name]:
            try:
                engines[name] = process = Theirs(peer)
            except peers.PeerError as error:
                theirs[name] = {"error": str(error)}
            else:
                told = {"version": process.peer.version, "instructions": process.peer.instructions}
                theirs[name] = {"weights": peer.precision, **told} | theirs[name]
    results = {**ours, **theirs}
    lm = loaded[asked.precision[0]].lm
    for context in asked.contexts:
        read = 1 if context >= READ_ONCE else asked.rounds + 1
        texts = draw_text(lm, max(*asked.rows, read), context + 1)
        found = kept.get(f"after {context:,} tokens", lambda: measure(engines, texts, asked.rows, asked.rounds))  # noqa: B023
        for name in list(engines):
            if engines[name].error:
                results[name]["error"] = engines.pop(name).error
            elif name in found:
                results[name].setdefault("contexts", {})[str(context)] = found[name]
    first, *more = asked.precision
    whole = {"bandwidth_gb_per_second": bandwidth, **results[first]}
    whole |= {"precisions": {kind: results[kind] for kind in more}, "peers": theirs}
    finish("engine", asked, whole, [f"memory: {bandwidth:.1f} GB/s", *lines(results, asked.rows)])


def lines(results: dict[str, dict[str, Any]], rows: list[int]) -> list[str]:
    """Tables for a terminal."""
    heads = [f"{count} row{'s' * (count > 1)}, ms" for count in rows]
    told = [
        f"{'tokens':>6}  {'engine':28} {'setting':32} {'prompt, tokens/s':>18}" + "".join(f"{h:>26}" for h in heads)
    ]
    for context in sorted({at for one in results.values() for at in one.get("contexts", {})}, key=int):
        for name, one in results.items():
            found = one.get("contexts", {}).get(context)
            for number, (setting, by_rows) in enumerate(found["step_ms"].items() if found else ()):
                rate = "" if number else f"{found['prefill_tokens_per_second']['median']:.0f}"
                cells = [shown(by_rows[str(count)], 3) if str(count) in by_rows else "" for count in rows]
                told.append(f"{context:>6}  {name:28} {setting:32} {rate:>18}" + "".join(f"{c:>26}" for c in cells))
    for name, one in results.items():
        for context, found in one.get("contexts", {}).items():
            if known := found.get("known_ms"):
                told.append(f"{context:>6}  {name}, known tokens of a row, ms: " + ", ".join(
                    f"{count}: {shown(taken, 1)}" for count, taken in known.items()
                ))  # fmt: skip
        if "start_seconds" in one:
            seconds, peak = dict(one["start_seconds"]), one["peak_gib"]
            second = shown(seconds.pop("second"), 2)
            first = ", ".join(f"{how} {taken:.2f} s" for how, taken in seconds.items())
            told.append(
                f"{name}: start {first}, second {second} s; peak {peak['first']:.2f} GiB, second {peak['second']:.2f}"
            )
        if "error" in one:
            told.append(f"{name}: {one['error']}")
    return told


if __name__ == "__main__":
    main()
