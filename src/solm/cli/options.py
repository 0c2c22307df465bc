"""What makes a function a command, and the groups of options that several commands share."""

import contextlib
import copy
import dataclasses
import inspect
import json
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer

from solm.cli.output import Result, erase, print_result, say
from solm.core.errors import BudgetError, SolmError, argument
from solm.core.provenance import MOST_SEED

if TYPE_CHECKING:
    from solm.runtime.load import Prepared

DEFAULT_MODEL = "builtin:smollm2-135m"
DECIDERS = ("dense", "static")
"""Policies that need no training, by name."""
Seed = Annotated[int, typer.Option(min=0, max=MOST_SEED)]
Positive = Annotated[int, typer.Option(min=1)]
_OTHER_NAMES = {
    "model": "-m", "policy": "-p", "budget": "-b", "data": "-d", "out": "-o", "quiet": "-q", "verbose": "-v",
    "name": "--served-model-name", "max_rows": "--max-num-seqs",
}  # fmt: skip
"""Of options, beside their long names."""
_MEANINGS = {
    "model": "Hub id, folder, .gguf file, hf:OWNER/NAME:Q4_K_M for one of the hub, or builtin:smollm2-135m.",
    "policy": "Folder, hub id or builtin:... of a trained policy; auto: solm's own for the model.",
    "timings": "Step times that stay as they are, from solm bench --out or the clock of a reply in JSON; by default "
    "this machine is timed.",
    "data": "Text, separated by commas: files (.txt, .jsonl), folders, hub data sets, pydoc.",
    "precision": "Weights of the cpu backend: auto (default: a GGUF file's own 4 to 8 bits, int8 for floats), float32, "
    "bfloat16, int8, int4 (rounded, which loses much; draft models have it) or nested (the MLP's in two halves of 4 "
    "bits; default for policies that choose weight bits, unless a GGUF file's all have 6 or 8 bits).",
    "kv_cache_dtype": "auto (16 bits or more); with weights in integers also int8 (half the size) or int8-int4 (values "
    "in 4 bits). By default auto; int8 for builtin:smollm2-135m, where no loss could be measured.",
    "revision": "Branch, tag or commit of a model on the hub.",
    "trust_remote_code": "Run code that comes with a model. Only for models you trust.",
    "seed": "Seed of all random numbers.",
    "guess": "Tokens that a dense reply guesses before every pass, which verifies them: auto (as many as pay; the text "
    "stays the same), off, or a number up to 15.",
    "draft": "Smaller model of the same vocabulary, in any form of --model, that guesses tokens where that pays.",
    "json": "Print one JSON object, and nothing else, on standard output.",
    "threads": "Threads to compute with; by default one per usable core.",
    "quiet": "No progress, only results and errors.",
    "verbose": "Print more details.",
}
"""Of parameters that several commands have, where a command's own docstring does not say."""


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Which model, and in what numbers it runs where.

    Args:
        dtype: Of the torch backend: auto, float32, bfloat16 or float16.
        backend: torch: simulates, on any device; cpu: the compiled engine; auto: cpu where it can run.
    """

    model: str = DEFAULT_MODEL
    dtype: str = "auto"
    backend: str = "auto"
    precision: str | None = None
    kv_cache_dtype: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    def prepare(
        self, policy: str | None = None, timings: Path | None = None, sparsity: Any = None, draft: str | None = None
    ) -> "Prepared":
        """All of the model but its weights, with the policy, step times and draft model that it is to run with. Raises
        `SolmError`, which names the option, for what does not go together."""
        from solm.runtime.load import Prepared

        if self.revision is not None and (self.model.startswith("builtin:") or Path(self.model).exists()):
            raise SolmError(f"--revision: it goes with a model on the hub, which {self.model!r} is not")
        if self.backend == "cpu" and self.dtype != "auto":
            raise SolmError(f"--dtype: {self.dtype} needs --backend torch; the cpu backend has --precision")
        if policy in DECIDERS:
            raise SolmError(f"--policy: {policy} is no trained policy; give a folder, a hub id or builtin:...")
        return Prepared(policy=policy, timings=timings, sparsity=sparsity, draft=draft, **dataclasses.asdict(self))


def mention_policy(prepared: "Prepared") -> None:
    """Say which policy ships for a model that is run without one. Its weights are compared when it is loaded."""
    from solm.runtime.load import AUTO, shipped_policy

    with contextlib.suppress(SolmError):
        name = shipped_policy(prepared.facts)
        say(f"solm: --policy {AUTO} ({name}) was made for a model of this shape, and loses less")


@dataclasses.dataclass(frozen=True)
class ReplyOptions:
    """What replies are generated with.

    Args:
        policy: What chooses actions: folder, hub id or builtin:... of a trained policy, auto for solm's own for the
            model, or dense, static.
        budget: 0.9 (a share of the dense step's time, on the torch backend of its bytes), speed=1.1, ms=4.5,
            loss=0.05 (nats per token: what the policy's curve predicts, without one what guesses may give up, which is
            measured), keep=0.6 (net keep), or attention=0.4,mlp=0.8. Without it: dense.
        system: System message, for models with a chat template.
        max_new_tokens: Longest reply.
        temperature: Sample at this temperature; greedy at 0, and where no option of sampling is given.
        top_p: Sample from the likeliest tokens of this total probability.
        top_k: Sample from so many of the likeliest tokens; by default 50; 0: all.
        set: Another generation option as NAME=VALUE, such as min_p=0.05 or repetition_penalty=1.1; for models that
            think before they answer reasoning_budget=0.6 or chat_template_kwargs.enable_thinking=false; may be
            repeated.
    """

    policy: str | None = None
    budget: str | None = None
    timings: Path | None = None
    system: str | None = None
    max_new_tokens: Positive = 256
    temperature: Annotated[float | None, typer.Option(min=0)] = None
    top_p: Annotated[float | None, typer.Option(min=0, max=1)] = None
    top_k: Annotated[int | None, typer.Option(min=0)] = None
    set: list[str] | None = None
    seed: int = 0
    guess: str = "auto"
    draft: str | None = None

    @property
    def decider(self) -> str | None:
        """The policy, where it is one that needs no training."""
        return self.policy if self.policy in DECIDERS else None

    def generation(self) -> dict[str, Any]:
        """Length, seed and the sampling options that were given, as `LanguageModel.generate` calls them."""
        from solm.runtime.guess import guess_count
        from solm.runtime.sampling import SUPPORTED

        named = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k")}
        options = {name: value for name, value in named.items() if value is not None} | assignments(self.set)
        known = (*SUPPORTED, "reasoning_budget", "chat_template_kwargs")
        for name, value in options.items():
            if name not in known:
                raise SolmError(f"--set: unknown generation option {name!r}; choose among {', '.join(known)}")
            if value != value or value in (float("inf"), float("-inf")):
                raise SolmError(f"--{name.replace('_', '-')}: {value} is not a number that can be used")
        if not isinstance(options.get("chat_template_kwargs", {}), dict):
            raise SolmError(
                "--set: chat_template_kwargs needs the name of a variable, as in chat_template_kwargs.NAME=VALUE"
            )
        guess = int(self.guess) if self.guess.isdecimal() else self.guess
        with argument("guess"):
            guess_count(guess, exact=True)
        return options | {"seed": self.seed, "max_new_tokens": self.max_new_tokens, "guess": guess}

    def prepare(self, model: ModelOptions) -> "Prepared":
        """The model with the policy. Raises `SolmError`, which names the option, where it has no room for a reply, no
        place for the system message, or a chat template that does not read a variable."""
        from solm.runtime.prompts import check_system, check_told

        prepared = model.prepare(None if self.decider else self.policy, self.timings, draft=self.draft)
        with argument("max_new_tokens"):
            prepared.check_room(self.max_new_tokens)
        check_system(prepared.tokenizer, self.system)
        with argument("set"):
            check_told(prepared.tokenizer, assignments(self.set).get("chat_template_kwargs"))
        return prepared

    def check_budget(self, prepared: "Prepared", prompt: int) -> None:
        """Raises `BudgetError` for a budget that a reply to `prompt` tokens cannot meet, as far as that is known before
        this machine is timed."""
        from solm.core.budget import Budget, BudgetRequest
        from solm.runtime.thinking import marks_of

        budgets, context = prepared.budgets(), prompt + self.max_new_tokens // 2
        thinking = assignments(self.set).get("reasoning_budget")
        for name, budget in (("set", thinking), ("budget", self.budget)):
            with argument(name):
                if name == "set" and budget is not None and marks_of(prepared.tokenizer.chat_template) is None:
                    raise BudgetError("reasoning_budget: this model's chat template knows no thinking")
                request = BudgetRequest.parse(budget)
                untimed = prepared.source is not None and prepared.times is None and request.kind != "loss"
                if untimed and request.in_time and self.policy != "dense":
                    budgets.check_untimed(request, context)
                elif budgets.resolve(budget, context).budget != Budget() and self.policy == "dense":
                    raise BudgetError(f"{budget} needs another --policy than dense, which spends everything")


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


def verb(function: Callable[..., Result | None]) -> Callable[..., None]:
    """`function` as a command.

    Parameters before ``/`` are arguments, the others options, and so is every field of one that is a dataclass. What
    they mean stands under ``Args:`` in docstrings. A command that returns a `Result` has --json, and all of them have
    --threads, --quiet and --verbose. An error of an argument begins with the name of its option.
    """
    words, own = _documented(function)
    meanings, parameters, groups = _MEANINGS | own, list[inspect.Parameter](), dict[str, Any]()
    signature = inspect.signature(function)
    for parameter in signature.parameters.values():
        group = parameter.annotation
        if not dataclasses.is_dataclass(group):
            parameters.append(parameter)
            continue
        groups[parameter.name] = group
        meanings |= _documented(group)[1]
        defaults = group if parameter.default is parameter.empty else parameter.default
        for field in dataclasses.fields(group):
            parameters.append(_option(field.name, field.type, getattr(defaults, field.name)))
    has_result = signature.return_annotation is Result
    if has_result:
        parameters.append(_option("json", bool, False))
    parameters += [_option("threads", int | None, None), _option("quiet", bool, False), _option("verbose", bool, False)]
    arguments = [each.name for each in parameters if each.kind is each.POSITIONAL_ONLY]
    typed = {each.name: each.name.upper() if each.name in arguments else _typed(each.name) for each in parameters}

    def run(*, threads: int | None, quiet: bool, verbose: bool, **given: Any) -> None:
        log, handler = logging.getLogger("solm"), logging.StreamHandler()
        handler.setFormatter(logging.Formatter(f"{erase()}%(name)s: %(message)s"))
        log.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)
        log.addHandler(handler)
        as_json = has_result and given.pop("json")
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
        try:
            with _computing_on(threads):
                result = function(*[given.pop(name) for name in arguments], **given)
            if result is not None:
                print_result(result, as_json)
        except SolmError as error:
            if error.argument not in typed:
                raise
            raise type(error)(f"{typed[error.argument]}: {error}") from error
        except KeyboardInterrupt as interrupted:  # typer would print nothing
            print("; ".join(["solm: interrupted", *map(str, interrupted.args)]), file=sys.stderr)
            raise typer.Exit(130) from None
        finally:
            log.removeHandler(handler)

    run.__doc__ = words
    shown = [_as_typer_takes_it(each, meanings[each.name]) for each in parameters]
    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    return run


def _documented(documented: object) -> tuple[str, dict[str, str]]:
    """The docstring without its ``Args:``, which stand at its end, and what these say, by name."""
    words, _, listed = inspect.cleandoc(documented.__doc__ or "").partition("\nArgs:\n")
    entries = re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", listed, re.MULTILINE)
    return words, {name: " ".join(meaning.split()) for name, meaning in entries}


def _option(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _typed(name: str) -> str:
    """What a user types for the option of a parameter."""
    return "--" + name.replace("_", "-")


def _as_typer_takes_it(parameter: inspect.Parameter, meaning: str) -> inspect.Parameter:
    """An argument, or an option with its names and the range that its annotation may give."""
    name, kind, info = parameter.name, parameter.annotation, typer.Argument()
    if parameter.kind is not parameter.POSITIONAL_ONLY:
        kind, ranged = get_args(kind) if get_origin(kind) is Annotated else (kind, typer.Option())
        info = copy.copy(ranged)
        info.param_decls = [_typed(name), _OTHER_NAMES[name]] if name in _OTHER_NAMES else [_typed(name)]
    info.help = meaning
    return parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=Annotated[kind, info])


def _computing_on(threads: int | None) -> contextlib.AbstractContextManager[None]:
    """Compute on so many threads while it lasts; None: on those that there are."""
    if threads is None:
        return contextlib.nullcontext()
    from solm.backends.machine import check_threads, threads_of

    with argument("threads"):
        check_threads(threads)
    return threads_of(threads)
