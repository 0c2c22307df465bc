"""Options that several commands share, and those that every command has."""

import contextlib
import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from solm.core.errors import SolmError
from solm.core.provenance import MOST_SEED

ModelOption = Annotated[str, typer.Option("--model", "-m", help="Hub id, folder, .gguf file or builtin:smollm2-135m.")]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with a model. Only for models you trust.")
]
PolicyOption = Annotated[
    str | None,
    typer.Option(
        "--policy", "-p", help="Folder, hub id or builtin:... of a trained policy; auto: solm's own for the model."
    ),
]
DeciderOption = Annotated[
    str | None,
    typer.Option(
        "--policy",
        "-p",
        help="What chooses actions: folder, hub id or builtin:... of a trained policy, auto for solm's own for the "
        "model, or dense, static, random.",
    ),
]
SpaceOption = Annotated[
    str | None, typer.Option(help="Action space, such as joint-27; with a policy, one within the policy's own.")
]
SparsityOption = Annotated[str | None, typer.Option(help="How actions are carried out: default, cpu, nested or paper.")]
BUDGET_FORMS = (
    "0.7 (a share of the dense step's milliseconds where measured, else of its bytes), speed=1.5, ms=4.5, loss=0.05 "
    "(nats per token), keep=0.6 (net keep), or attention=0.4,mlp=0.8"
)
BudgetOption = Annotated[str | None, typer.Option("--budget", "-b", help=f"{BUDGET_FORMS}. Without it: dense.")]
TimingsOption = Annotated[
    Path | None, typer.Option("--timings", help="Step times, from solm bench --out; by default the policy's, if any.")
]
TextsOption = Annotated[int, typer.Option(help="Number of texts.")]
ContextOption = Annotated[int, typer.Option(help="Tokens read densely before the controlled ones.")]
LengthOption = Annotated[int, typer.Option(help="Controlled tokens per text that are scored.")]
DataOption = Annotated[
    str,
    typer.Option(
        "--data", "-d", help="Text, separated by commas: files (.txt, .jsonl), folders, hub data sets, pydoc."
    ),
]
DtypeOption = Annotated[str, typer.Option(help="Of the torch backend: auto, float32, bfloat16 or float16.")]
BackendOption = Annotated[
    str, typer.Option(help="torch: simulates, on any device; cpu: the compiled engine; auto: cpu where it can run.")
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        help="Weights of the cpu backend: auto (default: a GGUF file's own 4 to 8 bits, int8 for floats), float32, "
        "bfloat16, int8 or nested (the MLP's in two halves of 4 bits; default for policies that choose weight bits, "
        "unless a GGUF file's all have 6 or 8 bits)."
    ),
]
KvCacheOption = Annotated[
    str | None,
    typer.Option(
        "--kv-cache-dtype",
        help="auto (16 bits or more), or int8 at half the size, with auto, int8 or nested weights. By default auto; "
        "int8 for builtin:smollm2-135m, where no loss could be measured.",
    ),
]
SeedOption = Annotated[int, typer.Option(help="Seed of all random numbers.")]
RunSeedOption = Annotated[int, typer.Option(help="Seed of all random numbers.", min=0, max=MOST_SEED)]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object, and nothing else, on standard output.")
]
ThreadsOption = Annotated[int | None, typer.Option(help="Threads to compute with; by default one per usable core.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only results and errors.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Print more details.")]
HELP: Any = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
"""How help is asked for, and how wide it is at most."""
DEFAULT_MODEL = "builtin:smollm2-135m"
DECIDERS = ("dense", "static", "random")
"""Policies that need no training, by name."""


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """`function` with the options that every command has: --threads, --quiet and --verbose."""

    @functools.wraps(function)
    def run(*, threads: int | None, quiet: bool, verbose: bool, **given: Any) -> None:
        log, handler = logging.getLogger("solm"), logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        log.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)
        log.addHandler(handler)
        try:
            chosen: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
            if threads is not None:
                cores = os.cpu_count() or 1
                if not 1 <= threads <= cores:
                    raise SolmError(f"--threads: {threads} is out of range: this machine has 1 to {cores}")
                from solm.backends.machine import threads_of

                chosen = threads_of(threads)
            with chosen:
                function(**given)
        except KeyboardInterrupt as interrupted:  # typer would print nothing
            print("; ".join(["solm: interrupted", *map(str, interrupted.args)]), file=sys.stderr)
            raise typer.Exit(130) from None
        finally:
            log.removeHandler(handler)

    common = {"threads": (ThreadsOption, None), "quiet": (QuietOption, False), "verbose": (VerboseOption, False)}
    own = inspect.signature(function)
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in common.items()
    ]
    run.__signature__ = own.replace(parameters=[*own.parameters.values(), *more])  # type: ignore[attr-defined]
    return run
