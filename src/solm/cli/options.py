"""Options that several commands share, alone or in groups, and those that every command has."""

import contextlib
import dataclasses
import functools
import inspect
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo

from solm.core.errors import BudgetError, SolmError, argument
from solm.core.provenance import MOST_SEED

if TYPE_CHECKING:
    from solm.runtime.prepare import Prepared

RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with a model. Only for models you trust.")
]
ModelArgument = Annotated[str, typer.Argument(help="Hub id, folder, .gguf file or builtin:smollm2-135m.")]
ModelOption = Annotated[str, typer.Option("--model", "-m", help="Hub id, folder, .gguf file or builtin:smollm2-135m.")]
PolicyOption = Annotated[
    str | None,
    typer.Option(
        "--policy", "-p", help="Folder, hub id or builtin:... of a trained policy; auto: solm's own for the model."
    ),
]
TimingsOption = Annotated[
    Path | None, typer.Option("--timings", help="Step times, from solm bench --out; by default the policy's, if any.")
]
DataOption = Annotated[
    str,
    typer.Option(
        "--data", "-d", help="Text, separated by commas: files (.txt, .jsonl), folders, hub data sets, pydoc."
    ),
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
RunSeedOption = Annotated[int, typer.Option(help="Seed of all random numbers.", min=0, max=MOST_SEED)]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object, and nothing else, on standard output.")
]
HELP: Any = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
"""How help is asked for, and how wide it is at most."""
DEFAULT_MODEL = "builtin:smollm2-135m"
DECIDERS = ("dense", "static", "random")
"""Policies that need no training, by name."""


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Which model, and in what numbers it runs where: a group of options of the same names."""

    model: ModelOption = DEFAULT_MODEL
    dtype: Annotated[str, typer.Option(help="Of the torch backend: auto, float32, bfloat16 or float16.")] = "auto"
    backend: Annotated[
        str, typer.Option(help="torch: simulates, on any device; cpu: the compiled engine; auto: cpu where it can run.")
    ] = "auto"
    precision: PrecisionOption = None
    kv_cache_dtype: KvCacheOption = None
    revision: RevisionOption = None
    trust_remote_code: TrustOption = False

    def prepare(self, policy: str | None = None, timings: Path | None = None, sparsity: Any = None) -> "Prepared":
        """All of the model but its weights, with the policy and step times that it is to run with. Raises `SolmError`,
        which names the option, for what does not go together."""
        from solm.runtime.prepare import Prepared

        if self.revision is not None and (self.model.startswith("builtin:") or Path(self.model).exists()):
            raise SolmError(f"--revision: it goes with a model on the hub, which {self.model!r} is not")
        if self.backend == "cpu" and self.dtype != "auto":
            raise SolmError(f"--dtype: {self.dtype} needs --backend torch; the cpu backend has --precision")
        if policy in DECIDERS:
            raise SolmError(f"--policy: {policy} is no trained policy; give a folder, a hub id or builtin:...")
        return Prepared(policy=policy, timings=timings, sparsity=sparsity, **dataclasses.asdict(self))


def mention_policy(prepared: "Prepared") -> None:
    """Say which policy ships for a model that is run without one. Its weights are compared when it is loaded."""
    from solm.cli.output import say
    from solm.runtime.prepare import AUTO, shipped_policy

    with contextlib.suppress(SolmError):
        name = shipped_policy(prepared.facts)
        say(f"solm: budgets treat all layers alike; --policy {AUTO} ({name}) was made for a model of this shape")


@dataclasses.dataclass(frozen=True)
class ReplyOptions:
    """What replies are generated with: a group of options of the same names."""

    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            "-p",
            help="What chooses actions: folder, hub id or builtin:... of a trained policy, auto for solm's own for the "
            "model, or dense, static, random.",
        ),
    ] = None
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            "-b",
            help="0.7 (a share of the dense step's milliseconds where measured, else of its bytes), speed=1.5, ms=4.5, "
            "loss=0.05 (nats per token), keep=0.6 (net keep), or attention=0.4,mlp=0.8. Without it: dense.",
        ),
    ] = None
    timings: TimingsOption = None
    system: Annotated[str | None, typer.Option(help="System message, for models with a chat template.")] = None
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply.", min=1)] = 256
    temperature: Annotated[
        float | None,
        typer.Option(help="Sample at this temperature; greedy at 0, and where no option of sampling is given.", min=0),
    ] = None
    top_p: Annotated[
        float | None, typer.Option(help="Sample from the likeliest tokens of this total probability.", min=0, max=1)
    ] = None
    top_k: Annotated[
        int | None, typer.Option(help="Sample from so many of the likeliest tokens; by default 50; 0: all.", min=0)
    ] = None
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Another generation option as NAME=VALUE, such as min_p=0.05, repetition_penalty=1.1 or "
            "presence_penalty=0.5; may be repeated.",
        ),
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0

    @property
    def decider(self) -> str | None:
        """The policy, where it is one that needs no training."""
        return self.policy if self.policy in DECIDERS else None

    def generation(self) -> dict[str, Any]:
        """Length, seed and the sampling options that were given, as `LanguageModel.generate` calls them."""
        from solm.runtime.sampling import SUPPORTED

        named = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k")}
        options = {name: value for name, value in named.items() if value is not None} | assignments(self.set)
        for name, value in options.items():
            if name not in SUPPORTED:
                raise SolmError(f"--set: unknown generation option {name!r}; choose among {', '.join(SUPPORTED)}")
            if value != value or value in (float("inf"), float("-inf")):
                raise SolmError(f"--{name.replace('_', '-')}: {value} is not a number that can be used")
        return options | {"seed": self.seed, "max_new_tokens": self.max_new_tokens}

    def prepare(self, model: ModelOptions) -> "Prepared":
        """The model with the policy. Raises `SolmError`, which names the option, where it has no room for a reply or no
        place for the system message, or for a budget of the policy ``dense``, which spends everything."""
        from solm.core.budget import Budget, BudgetRequest
        from solm.core.errors import check_unicode

        with argument("budget"):
            if self.policy == "dense" and BudgetRequest.parse(self.budget).value not in (1.0, Budget()):
                raise BudgetError(f"{self.budget} needs another --policy than dense, which spends everything")
        prepared = model.prepare(None if self.decider else self.policy, self.timings)
        with argument("max_new_tokens"):
            prepared.check_room(self.max_new_tokens)
        with argument("system"):
            if self.system is not None:
                check_unicode(self.system, "the message")
            if self.system is not None and not prepared.tokenizer.chat_template:
                raise SolmError(
                    "this model has no chat template, so a system message has no place; put it into the prompt"
                )
        return prepared


def assignments(given: Sequence[str] | None) -> dict[str, Any]:
    """The values of --set by name: numbers, true, false and lists as in JSON, anything else as text. Values of names
    such as floors.low are together in a dictionary under floors."""
    values: dict[str, Any] = {}
    for item in given or ():
        name, equals, text = item.partition("=")
        name, dot, part = name.partition(".")
        if not (name and equals) or (dot and not part):
            raise SolmError(f"--set: {item!r} is not NAME=VALUE")
        into, key = (values.setdefault(name, {}), part) if dot else (values, name)
        if key in into:
            raise SolmError(f"--set: {item.partition('=')[0]} is given twice")
        try:
            into[key] = json.loads(text)
        except ValueError:
            into[key] = text
    return values


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """`function` as a command: every field of a parameter that is a group of options, a dataclass, is an option; there
    are --threads, --quiet and --verbose; and an error of an argument begins with the name of its option."""
    groups: dict[str, Any] = {}
    parameters = []
    for name, parameter in inspect.signature(function).parameters.items():
        if dataclasses.is_dataclass(parameter.annotation):
            groups[name] = parameter.annotation
            hints = get_type_hints(parameter.annotation, include_extras=True)
            defaults = {field.name: field.default for field in dataclasses.fields(parameter.annotation)}
            parameters += [_parameter(each, hints[each], default) for each, default in defaults.items()]
        else:
            parameters.append(_parameter(name, parameter.annotation, parameter.default))
    names = {parameter.name: _typed(parameter) for parameter in parameters}

    @functools.wraps(function)
    def run(*, threads: int | None, quiet: bool, verbose: bool, **given: Any) -> None:
        log, handler = logging.getLogger("solm"), logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        log.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)
        log.addHandler(handler)
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
        try:
            with _threads(threads):
                function(**given)
        except SolmError as error:
            if error.argument not in names:
                raise
            raise type(error)(f"{names[error.argument]}: {error}") from error
        except KeyboardInterrupt as interrupted:  # typer would print nothing
            print("; ".join(["solm: interrupted", *map(str, interrupted.args)]), file=sys.stderr)
            raise typer.Exit(130) from None
        finally:
            log.removeHandler(handler)

    parameters += [
        _parameter("threads", Annotated[
            int | None, typer.Option(help="Threads to compute with; by default one per usable core.")
        ], None),
        _parameter("quiet", Annotated[
            bool, typer.Option("--quiet", "-q", help="No progress, only results and errors.")
        ], False),
        _parameter("verbose", Annotated[bool, typer.Option("--verbose", "-v", help="Print more details.")], False),
    ]  # fmt: skip
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _parameter(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _typed(parameter: inspect.Parameter) -> str:
    """What a user types for a parameter: the long name of its option, or an argument in capitals."""
    info = get_args(parameter.annotation)[1] if get_origin(parameter.annotation) is Annotated else None
    if isinstance(info, ArgumentInfo):
        return parameter.name.upper()
    given = [each for each in getattr(info, "param_decls", None) or () if each.startswith("--")]
    return given[0] if given else "--" + parameter.name.replace("_", "-")


def _threads(threads: int | None) -> contextlib.AbstractContextManager[None]:
    """Compute on so many threads while it lasts; None: on those that there are."""
    if threads is None:
        return contextlib.nullcontext()
    cores = os.cpu_count() or 1
    if not 1 <= threads <= cores:
        raise SolmError(f"--threads: {threads} is out of range: this machine has 1 to {cores}")
    from solm.backends.machine import threads_of

    return threads_of(threads)
