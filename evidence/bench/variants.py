"""Every instruction set that the engine has and this processor runs, beside llama.cpp compiled for the same one.

    python evidence/bench/variants.py --model FILE.gguf --llama avx2=FOLDER --llama sse4=FOLDER --out variants.json

Engines take turns on this machine: they read one text after another, and decode in interleaved rounds, as in engine.py.
`--llama NAME=FOLDER` names a folder with libllama.so and its libraries, of the version that llama-cpp-python was made
for, compiled for that instruction set; which one it is, llama.cpp is asked. llama.cpp runs with its default
attention and its cache in float16.

An engine that would read a context's texts for longer than --most-seconds, by its rate after the context before,
decodes one row there, or is left out.
"""

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from evidence.bench import peers
from evidence.bench.common import Kept, draw_text, finish, in_turns, parser, spread
from evidence.bench.timed_engines import EVERY_LOGIT, Ours, Theirs, Timed, Turns
from solm.backends.cpu.library import NATIVE, usable_features, variant_named, variants_of
from solm.backends.names import gguf_of
from solm.core.errors import SolmError

LLAMA = "llama.cpp"
FEATURES = {
    "sse4": ({"SSSE3"}, {"AVX"}), "avx2": ({"AVX2", "FMA"}, {"AVX512"}), "avx512": ({"AVX512_VNNI"}, {"AMX_INT8"}),
    "amx": ({"AMX_INT8"}, set()),
    "neon": ({"NEON"}, {"DOTPROD"}), "dotprod": ({"DOTPROD"}, {"MATMUL_INT8"}), "i8mm": ({"MATMUL_INT8"}, set()),
}  # fmt: skip
"""By instruction set, what llama.cpp must say that it was compiled with and without."""
SAY = "import llama_cpp; print(llama_cpp.llama_print_system_info().decode())"


class Variant(Ours):
    """The cpu backend with one instruction set."""

    def __init__(self, asked: argparse.Namespace, name: str):
        with environment(SOLM_CPU=name):
            super().__init__(asked, "auto")
        self.name = name

    def turns(self, rows: int) -> Turns:
        every = super().turns(rows)
        return {name: every[name] for name in ("dense", EVERY_LOGIT)}


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Environment variables inside the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def llama_features(python: str, folder: Path, name: str) -> str:
    """What llama.cpp in a folder says that it was compiled for. Ends the program where that is not `name`."""
    with environment(LLAMA_CPP_LIB_PATH=str(folder)):
        done = subprocess.run([python, "-c", SAY], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"--llama {name}: {folder} cannot be loaded: {done.stderr.strip().splitlines()[-1]}")
    told = done.stdout.strip()
    has = {part.split("=")[0].strip().rpartition(" ")[2] for part in told.split("|") if part.strip().endswith("= 1")}
    wanted, unwanted = FEATURES.get(name, (set(), set()))
    if wanted - has or unwanted & has:
        sys.exit(f"--llama {name}: {folder} was compiled for another instruction set: {told}")
    return told


def theirs(python: str, folder: Path, file: Path) -> Theirs:
    with environment(LLAMA_CPP_LIB_PATH=str(folder)):
        return Theirs(peers.Asked(LLAMA, python, file, peers.file_type(file), torch.get_num_threads()))


def measure(
    engines: dict[str, Timed], texts: torch.Tensor, rows: dict[str, list[int]], rounds: int
) -> dict[str, dict[str, Any]]:
    """At one context, texts [T, context + 1]: by engine `prefill_tokens_per_second`, and `step_ms` by setting and those
    numbers of rows that it decodes. The first text warms up."""
    count = {name: max(2, *rows[name]) for name in engines}
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for name, engine in engines.items():
        engine.texts(texts[: count[name]])
    for row in range(max(count.values())):
        for name, engine in engines.items():
            if row < count[name]:
                taken = engine.read(row)
                rates[name] += [1e3 * (texts.shape[1] - 1) / taken] if row else []
    found: dict[str, dict[str, Any]] = {
        name: {"prefill_tokens_per_second": spread(rates[name]), "step_ms": {}} for name in engines
    }
    for number in sorted({number for some in rows.values() for number in some}):
        turns = {
            (name, setting): lambda run=run: median(run())  # type: ignore[misc]
            for name, engine in engines.items()
            if number in rows[name]
            for setting, run in engine.turns(number).items()
        }
        for (name, setting), taken in in_turns(turns, rounds).items():
            found[name]["step_ms"].setdefault(setting, {})[str(number)] = spread(taken)
    return found


def rows_within(rows: list[int], context: int, rate: float, most_seconds: float) -> list[int]:
    """The numbers of rows whose texts are read in time at `rate` tokens per second; the first text is read twice."""
    return [number for number in rows if max(2, number) * context <= rate * most_seconds]


def checked(options: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments; ends with one line and code 2 for one that is wrong."""
    asked = options.parse_args()
    try:
        asked.contexts, asked.rows = ([int(one) for one in text.split(",")] for text in (asked.contexts, asked.rows))
        asked.llama = {name: Path(folder) for name, folder in (one.split("=", 1) for one in asked.llama)}
        for name in asked.variants.split(",") if asked.variants else []:
            if name != NATIVE:
                variant_named(name, platform.machine(), usable_features())
    except (SolmError, ValueError) as error:
        options.error(str(error))
    if min(*asked.contexts, *asked.rows, asked.rounds) < 1:
        options.error("--contexts, --rows and --rounds must be numbers from 1 on")
    runs = [one.name for one in variants_of(platform.machine()) if not one.missing(usable_features())]
    asked.variants = asked.variants.split(",") if asked.variants else [*runs, NATIVE]
    for name in asked.llama.keys() - set(asked.variants):
        options.error(f"--llama {name}: must be among {', '.join(asked.variants)}")
    if gguf_of(asked.model) is None:
        options.error(f"--model {asked.model}: must be a GGUF file, which llama.cpp reads too")
    return asked


def main() -> None:
    options = parser(__doc__, "dtype", "rounds")
    options.add_argument("--variants", help="instruction sets; all that this processor runs, and native")
    options.add_argument("--contexts", default="64,1024,4096", help="tokens seen before the steps")
    options.add_argument("--rows", default="1,16", help="rows of a step")
    options.add_argument("--llama", action="append", default=[], metavar="NAME=FOLDER")
    options.add_argument("--peer-python", action="append", default=[], help="the Python that has llama-cpp-python")
    options.add_argument("--most-seconds", type=float, default=60, help="of an engine's reading at one context")
    asked = checked(options)
    asked.policy, asked.budgets = None, "1"
    file = gguf_of(asked.model)
    assert file is not None
    python = peers.python_with(LLAMA, [*asked.peer_python, sys.executable]) if asked.llama else None
    if asked.llama and python is None:
        sys.exit("--llama: llama-cpp-python is not installed in any of --peer-python")
    engines: dict[str, Timed] = {}
    results: dict[str, dict[str, Any]] = {}
    for name in asked.variants:
        engines[name] = made = Variant(asked, name)
        results[name] = {"weights": str(made.lm.backend.dtype), "contexts": {}}
        if name in asked.llama:
            assert python is not None
            told = {"features": llama_features(python, asked.llama[name], name)}
            engines[f"{LLAMA} {name}"] = peer = theirs(python, asked.llama[name], file)
            results[name][LLAMA] = {"weights": peer.precision, "version": peer.peer.version, **told, "contexts": {}}
    lm = next(one.lm for one in engines.values() if isinstance(one, Variant))
    rates, kept = dict.fromkeys(engines, float("inf")), Kept(asked)
    for context in sorted(asked.contexts):
        rows = {name: rows_within(asked.rows, context, rates[name], asked.most_seconds) for name in engines}
        taking = {name: engine for name, engine in engines.items() if rows[name] and not engine.error}
        if not taking:
            continue
        texts = draw_text(lm, max(2, *asked.rows), context + 1)
        measured = kept.get(f"after {context:,} tokens", lambda: measure(taking, texts, rows, asked.rounds))  # noqa: B023
        for name, found in measured.items():
            if engines[name].error:
                sys.exit(f"{name}: {engines[name].error}")
            rates[name] = found["prefill_tokens_per_second"]["median"]
            ours = results[name.removeprefix(f"{LLAMA} ")]
            (ours[LLAMA] if name.startswith(LLAMA) else ours)["contexts"][str(context)] = found
    asked.llama = sorted(asked.llama)
    finish("variants", asked, {"variants": results}, lines(results))


def lines(results: dict[str, dict[str, Any]]) -> list[str]:
    """A table for a terminal."""
    told = [f"{'tokens':>6}  {'engine':24} {'prompt, tokens/s':>18}  steps by rows, ms"]
    for name, ours in results.items():
        for label, found in ((name, ours), (f"{LLAMA}, {name}", ours.get(LLAMA, {"contexts": {}}))):
            for context, one in found["contexts"].items():
                steps = [
                    f"{setting} {rows}: {taken['median']:.2f}"
                    for setting, by_rows in one["step_ms"].items()
                    for rows, taken in by_rows.items()
                ]
                rate = one["prefill_tokens_per_second"]["median"]
                told.append(f"{context:>6}  {label:24} {rate:18.0f}  {'; '.join(steps)}")
    return told


if __name__ == "__main__":
    main()
