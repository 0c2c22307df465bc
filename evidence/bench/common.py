"""What the benchmarks share: options, the model and text, steps of a session, medians of interleaved rounds."""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

import solm
from evidence.record import record
from solm.backends.session import AnyPolicy, Session
from solm.core.files import Parts, write_text
from solm.evaluation.texts import token_stream

MODEL, TEXT = "builtin:smollm2-135m", "pydoc:heldout"
STEPS = 24
"""Steps of a round."""
PARTIAL = ".partial"
"""The ending of the file beside --out."""
_Name = TypeVar("_Name", bound=Hashable)


def parser(
    description: str | None, *taken: Literal["dtype", "rounds"], several: bool = False
) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark takes, and those of some that are `taken` here too: what a result
    records has been used. several: of models, --model by --model."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    made.add_argument("--out", type=Path, help="write the JSON here")
    if several:
        made.add_argument("--model", action="append", required=True, help="a model; repeatable")
    else:
        made.add_argument("--model", default=MODEL)
    if "dtype" in taken:
        made.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16")
    if "rounds" in taken:
        made.add_argument("--rounds", type=int, default=5, help="interleaved rounds, after one that warms up")
    return made


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


class Kept(Parts):
    """The parts of a benchmark, each told of on stderr when it begins. Beside --out they are kept until `finish`: the
    same command goes on where it was interrupted."""

    def __init__(self, options: argparse.Namespace):
        beside = None if options.out is None else options.out.with_name(options.out.name + PARTIAL)
        super().__init__(beside, _settings(options))
        self._begun = time.perf_counter()

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        taken = f"{time.perf_counter() - self._begun:4.0f} s"
        print(f"[{taken}] {name}{' (kept)' if name in self else ''}", file=sys.stderr, flush=True)
        return super().get(name, make)


def finish(kind: str, options: argparse.Namespace, results: dict[str, Any], lines: list[str]) -> None:
    """Print or write the result of the benchmark `kind`; `lines` are for a terminal."""
    found = record(kind, _settings(options), results)
    if options.out is not None:
        write_text(options.out, found.model_dump_json(indent=2) + "\n")
        options.out.with_name(options.out.name + PARTIAL).unlink(missing_ok=True)
    print(found.model_dump_json() if options.json else "\n".join(lines))


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """What results keep of the options."""
    ours = {name: _without_folders(value) for name, value in vars(options).items() if name not in ("json", "out")}
    return ours | {"threads": torch.get_num_threads()}


def _without_folders(value: Any) -> Any:
    """A setting as results keep it: of a path its name."""
    if isinstance(value, list):
        return [_without_folders(one) for one in value]
    is_path = isinstance(value, Path) or (isinstance(value, str) and "/" in value and Path(value).exists())
    return Path(value).name if is_path else value


def draw_text(lm: solm.LanguageModel, count: int, length: int) -> torch.Tensor:
    """`count` windows [count, length] of real text, which overlap where there is not enough of it."""
    assert lm.tokenizer is not None
    stream, generator = token_stream(TEXT, lm.tokenizer), torch.Generator().manual_seed(0)
    spaced = stream.spaced(count, length, generator)
    return spaced if len(spaced) == count else stream.random(count, length, generator)


def constant_step(
    session: Session, keep: tuple[float, float, float], exact_largest: int = 1
) -> Callable[[torch.Tensor], object]:
    """A step of all rows, tokens [N], under one action; as greedy generation runs it, or with every logit exact."""
    action = torch.tensor([keep], dtype=torch.float64).expand(session.rows, 3)
    return lambda tokens: session.step(tokens, action, exact_largest=exact_largest)


def policy_step(
    session: Session, policy: AnyPolicy, target: torch.Tensor, horizon: int
) -> Callable[[torch.Tensor], object]:
    """A greedy step of all rows that a policy decides, within target [N, 3] over `horizon` steps."""
    session.control(policy, target, horizon)
    return lambda tokens: session.step(tokens, exact_largest=1)


def clock(run: Callable[[], object]) -> float:
    """Milliseconds that a call takes."""
    begun = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - begun)


def interleaved(runs: dict[str, Callable[[], object]], rounds: int, steps: int = STEPS) -> dict[str, list[float]]:
    """Every round's median milliseconds of a call, by name. Rounds take turns; one before the first warms up."""
    turns = {
        name: lambda run=run: statistics.median(clock(run) for _ in range(steps))  # type: ignore[misc]
        for name, run in runs.items()
    }
    return in_turns(turns, rounds)


def in_turns(turns: dict[_Name, Callable[[], float]], rounds: int) -> dict[_Name, list[float]]:
    """What every call finds in each round, by name; one round before the first warms up."""
    found: dict[_Name, list[float]] = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name, turn in turns.items():
            measured = turn()
            if number:
                found[name].append(measured)
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest of rounds."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}
