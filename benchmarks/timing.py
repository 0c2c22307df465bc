"""What the benchmarks share: the model and text, time spent inside modules, medians."""

import argparse
import platform
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

import solm
from solm.data.windows import token_stream
from solm.evaluation.result import command_line, environment

MODEL, TEXT = "builtin:smollm2-135m", "pydoc:heldout"


def arguments(description: str | None, *more: Callable[[argparse.ArgumentParser], object]) -> argparse.Namespace:
    """The options that every benchmark takes, and those that `more` add."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--rounds", type=int, default=7)
    for add in more:
        add(parser)
    return parser.parse_args()


def load(dtype: str, sparsity: solm.SparsityConfig, count: int, length: int) -> tuple[Any, torch.Tensor]:
    """The embedded model and `count` windows of `length` tokens of real text."""
    lm = solm.load(MODEL, sparsity=sparsity, dtype=dtype)
    return lm, draw_text(lm, count, length)


def draw_text(lm: Any, count: int, length: int) -> torch.Tensor:
    """`count` windows [count, length] of real text."""
    return token_stream(TEXT, lm.tokenizer).spaced(count, length, torch.Generator().manual_seed(0))


@contextmanager
def seconds_inside(**modules: torch.nn.Module) -> Iterator[dict[str, float]]:
    """Seconds spent in the forward passes of modules, by name."""
    spent: dict[str, float] = defaultdict(float)
    handles = []
    for name, module in modules.items():
        begun: list[float] = []
        handles += [
            module.register_forward_pre_hook(lambda *_, begun=begun: begun.append(time.perf_counter())),
            module.register_forward_hook(
                lambda *_, begun=begun, name=name: spent.__setitem__(
                    name, spent[name] + time.perf_counter() - begun.pop()
                )
            ),
        ]
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()


def median(values: list[float]) -> float:
    return statistics.median(values)


def peak_memory_gib() -> float:
    """Largest resident size of this process so far."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def machine() -> dict[str, Any]:
    return {"command": command_line(), **environment(), "threads": torch.get_num_threads()}
