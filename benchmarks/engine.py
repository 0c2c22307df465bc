"""The cpu backend on a model's file: prompts, decode steps, memory and start, beside peers on the same file.

    python benchmarks/engine.py --model FILE.gguf --contexts 64,1024,4096 --rows 1,16 --peers --json
    python benchmarks/engine.py --precision bfloat16,int8,auto --policy builtin:smollm2-135m-cpu --json

Engines take turns on this machine, with the same threads for everyone. Prompts: tokens per second of reading one text
after another, every engine the same text before the next. Steps: a figure is the median over rounds of a round's median
step, each after the same texts. They run as greedy generation runs them. A precision such as `int8+int8` has its KV
cache in int8. With a policy, `policy 1` decides and then spends everything: what it takes longer than `dense` is what
a decision costs. Starts: seconds from the start of a fresh process to its first token, imports and loading included,
and the peak of its resident memory; ours with an empty cache folder, then with the compiled engine in it, then with the
weights as well.

Peers: llama.cpp with and without its fused attention, its caches in float16, and OpenVINO GenAI, where they are
installed here or in the environments of --peer-python; transformers, dense and of one row, where it is named.
"""

import argparse
from collections.abc import Callable
from math import nan
from statistics import median
from typing import Any, Protocol, TypeVar

import torch

import peers
import solm
import starts
from common import STEPS, clock, constant_step, draw_text, finish, in_turns, numbers, parser, policy_step, spread
from solm.backends.cpu.backend import check_precision
from solm.backends.names import gguf_of
from solm.backends.session import Session
from solm.core.errors import SolmError
from solm.evaluation.step_timing import memory_bandwidth
from solm.runtime.load import source_of

SETTINGS = {
    "dense": (1.0, 1.0, 16), "mlp 0.8": (1.0, 0.8, 16), "mlp 0.6": (1.0, 0.6, 16), "pages 0.2": (0.2, 1.0, 16),
    "pages 0.2, mlp 0.6": (0.2, 0.6, 16),
}  # fmt: skip
EVERY_LOGIT = "dense, every logit"
"""A dense step whose logits are all exact, as those of peers are."""
HALVES = {"high halves": (1.0, 1.0, 4), "high halves, pages 0.2, mlp 0.8": (0.2, 0.8, 4)}
"""Of nested weights."""
TRANSFORMERS = "transformers"
Turns = dict[str, Callable[[], list[float]]]
_Found = TypeVar("_Found")


class Timed(Protocol):
    """An engine whose prompts and steps are timed."""

    name: str
    precision: str
    kv_cache: str
    error: str
    """Why it went no further; empty while it goes on."""

    def texts(self, texts: torch.Tensor) -> None:
        """From here on, rows are of texts [rows, context + 1]."""

    def read(self, row: int) -> float:
        """Milliseconds of reading all of a row's text but the last token."""

    def turns(self, rows: int) -> Turns:
        """Calls that decode the first rows' last tokens STEPS times after their texts, which have been read: by
        setting, milliseconds of each."""


class Ours:
    """The cpu backend; or transformers, which is dense and of one row."""

    error = ""

    def __init__(self, asked: argparse.Namespace, kind: str, stock: bool = False):
        self.precision, _, cache = kind.partition("+")
        self.kv_cache, self.stock = cache or "auto", stock
        self.policy, self.budgets = asked.policy, numbers(asked.budgets)
        if stock:
            self.lm = solm.load(asked.model, dtype=asked.dtype, backend="torch")
            self.name, self.precision = "transformers", str(self.lm.backend.dtype)
        else:
            preset = "nested" if self.precision == "nested" else "cpu"
            self.lm = solm.load(
                asked.model, asked.policy, sparsity=None if asked.policy else solm.SparsityConfig.preset(preset),
                dtype=asked.dtype, backend="cpu", precision=self.precision, kv_cache_dtype=self.kv_cache,
            )  # fmt: skip
            self.name = "cpu"

    def texts(self, texts: torch.Tensor) -> None:
        self.ids: torch.Tensor = texts
        self.sessions: dict[int, Session] = {}

    def read(self, row: int) -> float:
        session = self.lm.session(capacity=self.ids.shape[1] + STEPS)
        self.sessions[row] = session
        return clock(lambda: session.prefill(self.ids[row : row + 1, :-1]))

    def turns(self, rows: int) -> Turns:
        last = self.ids[:rows, -1]
        if self.stock:
            session = self.sessions[0]
            return {"dense": lambda: steps(session, session.step, last)} if rows == 1 else {}
        parent = self.sessions[0].fork(1, STEPS)
        for row in range(1, rows):
            parent.join(self.sessions[row].fork(1, STEPS))
        made: Turns = {}
        for name, keep in (SETTINGS | (HALVES if self.precision == "nested" else {})).items():
            fork = parent.fork(1, STEPS)
            made[name] = lambda fork=fork, step=constant_step(fork, keep): steps(fork, step, last)  # type: ignore[misc]
        session = parent.fork(1, STEPS)
        exact = constant_step(session, SETTINGS["dense"], approximate_tail=False)
        made[EVERY_LOGIT] = lambda: steps(session, exact, last)
        for net in self.budgets if self.policy else ():
            fork, target = parent.fork(1, STEPS), self.lm.budget(f"keep={net}").tensor(rows)
            made[f"policy {net:g}"] = lambda fork=fork, target=target: steps(  # type: ignore[misc]
                fork, policy_step(fork, self.lm.policy("policy"), target, STEPS), last
            )
        return made


class Theirs:
    """A peer in a process of its own. After its first `error` it finds NaN."""

    kv_cache = "auto"

    def __init__(self, asked: peers.Asked):
        self.name, self.precision, self.error = asked.name, asked.precision, ""
        self.peer = peers.Peer(asked)

    def texts(self, texts: torch.Tensor) -> None:
        self._try(lambda: self.peer.texts(texts.tolist(), STEPS), None)

    def read(self, row: int) -> float:
        return self._try(lambda: self.peer.read(row), nan)

    def turns(self, rows: int) -> Turns:
        return {"dense": lambda: self._try(lambda: self.peer.steps(rows, STEPS), [nan])}

    def _try(self, run: Callable[[], _Found], otherwise: _Found) -> _Found:
        try:
            return otherwise if self.error else run()
        except peers.PeerError as error:
            self.error = str(error)
            return otherwise


def steps(session: Session, step: Callable[[torch.Tensor], object], tokens: torch.Tensor) -> list[float]:
    """Milliseconds of STEPS steps, which the session then forgets."""
    start = session.lengths.clone()
    taken = [clock(lambda: step(tokens)) for _ in range(STEPS)]
    session.truncate(start)
    return taken


def measure(engines: dict[str, Timed], texts: torch.Tensor, rows: list[int], rounds: int) -> dict[str, dict[str, Any]]:
    """At one context, texts [T, context + 1] of at least `rows`: by engine, `prefill_tokens_per_second`, and `step_ms`
    by setting and number of rows. Those of an engine that failed are NaN."""
    for engine in engines.values():
        engine.texts(texts)
    # The first text warms up.
    read: dict[str, list[float]] = {name: [] for name in engines}
    for row in range(len(texts)):
        for name, engine in engines.items():
            taken = engine.read(row)
            if row:
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
    return found


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
    asked.peer_types = asked.peer_types.split(",") if asked.peer_types else []
    known = (*peers.NAMES, TRANSFORMERS)
    for name in set(asked.peers) - set(known):
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
    if file is None and set(asked.peers) - {TRANSFORMERS}:
        options.error(f"--peers: they read GGUF files, and {asked.model} is not one")
    return asked


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--contexts", default="64,1024,4096", help="tokens seen before the steps")
    options.add_argument(
        "--precision", default="auto",
        help="auto, float32, bfloat16, int8, nested; +int8: KV cache; several separated by commas",
    )  # fmt: skip
    options.add_argument("--rows", default="1", help="rows of a step")
    options.add_argument("--policy", help="also the steps that this policy decides")
    options.add_argument("--budgets", default="1,0.6", help="net keeps of the policy")
    options.add_argument(
        "--peers", nargs="?", const=",".join(peers.NAMES), help="beside all installed peers, or beside those named here"
    )
    options.add_argument(
        "--peer-python", action="append", default=[], help="the Python of another environment to look for peers in"
    )
    options.add_argument(
        "--peer-types", help="also let peers read files of these types, such as Q8_0,Q4_0, which llama.cpp makes"
    )
    asked = checked(options)
    bandwidth, file = memory_bandwidth(), gguf_of(asked.model)
    others: dict[str, peers.Asked] = {}
    if file is not None and set(asked.peers) - {TRANSFORMERS}:
        others = peers.find(asked, file, torch.get_num_threads())
    ours, theirs = starts.measure(asked, others)
    loaded = {kind: Ours(asked, kind) for kind in asked.precision}
    for kind, engine in loaded.items():
        ours[kind] = {"weights": str(engine.lm.backend.dtype)} | ours[kind]
    engines: dict[str, Timed] = dict(loaded)
    if TRANSFORMERS in asked.peers:
        engines[TRANSFORMERS], theirs[TRANSFORMERS] = Ours(asked, "auto", stock=True), {}
    for name, peer in others.items():
        if "error" not in theirs[name]:
            try:
                engines[name] = made = Theirs(peer)
            except peers.PeerError as error:
                theirs[name] = {"error": str(error)}
            else:
                theirs[name] = {"weights": peer.precision, "version": made.peer.version} | theirs[name]
    results = {**ours, **theirs}
    points: list[dict[str, Any]] = []
    lm = loaded[asked.precision[0]].lm
    for context in asked.contexts:
        texts = draw_text(lm, max(*asked.rows, asked.rounds + 1), context + 1)
        found = measure(engines, texts, asked.rows, asked.rounds)
        for name in list(engines):
            if engines[name].error:
                results[name]["error"] = engines.pop(name).error
            else:
                results[name].setdefault("contexts", {})[str(context)] = found[name]
                points += listed(engines[name], context, found[name])
    first, *more = asked.precision
    told = {"bandwidth_gb_per_second": bandwidth, **results[first]}
    told |= {"precisions": {kind: results[kind] for kind in more}, "peers": theirs, "points": points}
    finish("engine", asked, told, [f"memory: {bandwidth:.1f} GB/s", *lines(results, asked.rows)])


def listed(engine: Timed, context: int, found: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of one engine one by one, as `published.py` reads them."""
    fused = engine.name == peers.FUSED
    return [
        {
            "context": context, "rows": int(rows), "engine": "llama.cpp" if fused else engine.name,
            "precision": engine.precision, "kv_cache": engine.kv_cache,
            "setting": f"{setting}, fused attention" if fused else setting, "milliseconds": taken,
        }
        for setting, by_rows in found["step_ms"].items()
        for rows, taken in by_rows.items()
    ]  # fmt: skip


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


def shown(found: dict[str, float], digits: int) -> str:
    return f"{found['median']:.{digits}f} ({found['low']:.{digits}f}, {found['high']:.{digits}f})"


if __name__ == "__main__":
    main()
