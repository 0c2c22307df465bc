"""Checks that come before a model is loaded. Every error names the option as it was typed."""

import errno
import importlib.util
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from solm.cli.options import DECIDERS
from solm.core.errors import ContextLengthError, SolmError, check_unicode
from solm.core.files import is_stream, place_of
from solm.runtime.facts import AUTO, ModelFacts, model_facts, policy_called, shipped_policy

if TYPE_CHECKING:
    from solm.core.actions import ActionSpace
    from solm.core.cost import StepTimings
    from solm.core.sparsity import SparsityConfig
    from solm.policies.artifact import TrainedPolicy

Settings = TypeVar("Settings", bound=BaseModel)


@contextmanager
def option(name: str) -> Iterator[None]:
    """Put the name of an option before the errors of the block."""
    try:
        yield
    except SolmError as error:
        raise type(error)(f"{name}: {error}") from error


def typed(field: str) -> str:
    """The option that sets a field of a settings class."""
    return "--" + field.replace("_", "-")


def settings(kind: type[Settings], **values: Any) -> Settings:
    """A settings object; raises `SolmError` that names the option, its value and what is allowed."""
    try:
        return kind(**values)
    except ValidationError as error:
        raise SolmError(explain(error, typed)) from error


def explain(error: ValidationError, name: Callable[[str], str]) -> str:
    """The first mistake of several in one line. name: what the user typed for a field."""
    first = error.errors()[0]
    fields = [str(part) for part in first["loc"]]
    where = f"{name(fields[0])}: " if fields else ""
    value, limits = first["input"], first.get("ctx", {})
    bounds = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    bound = next((f"{words} {limits[key]:g}" for key, words in bounds.items() if key in limits), None)
    if bound is not None:
        return f"{where}{value!r} is out of range: it must be {bound}"
    reasons = {
        "too_short": "give at least one",
        "literal_error": f"unknown value {value!r}; choose {limits.get('expected')}",
        "int_parsing": f"{value!r} is not a whole number",
        "int_type": f"{value!r} is not a whole number",
        "float_parsing": f"{value!r} is not a number",
        "float_type": f"{value!r} is not a number",
        "extra_forbidden": "there is no such setting",
        "value_error": first["msg"].removeprefix("Value error, "),
    }
    return where + reasons.get(first["type"], f"{first['msg']} (got {value!r})")


def counts(text: str, name: str) -> tuple[int, ...]:
    """The whole numbers of at least 1 in a list such as 64,1024, by rising size."""
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise SolmError(f"{name}: {text!r} is not a list of whole numbers such as 64,1024") from None
    if found[0] < 1:
        raise SolmError(f"{name}: {found[0]} is out of range: it must be at least 1")
    return tuple(found)


def finite(name: str, value: float | None) -> None:
    """Refuse nan and infinity."""
    if value is not None and not math.isfinite(value):
        raise SolmError(f"{name}: {value} is not a number that can be used")


def space_of(name: str | None) -> "ActionSpace | None":
    """The action space of --space."""
    from solm.core.actions import ActionSpace

    with option("--space"):
        return None if name is None else ActionSpace.preset(name)


def sparsity_of(name: str | None) -> "SparsityConfig | None":
    """What --sparsity names."""
    from solm.core.sparsity import SparsityConfig

    with option("--sparsity"):
        return None if name is None else SparsityConfig.preset(name)


def step_times(path: Path | None, model: str, backend: str = "auto") -> "StepTimings | None":
    """The step times in the file of --timings; refuses those of another model or backend than --model and --backend."""
    from solm.core.cost import read_timings

    if path is None:
        return None
    with option("--timings"):
        found = read_timings(path)
        found.check_model(model, backend)
    return found


def model_config(
    model: str, revision: str | None = None, trust: bool = False, typed: str = "--model", backend: str = "torch"
) -> ModelFacts:
    """What the files of --model say, without weights: as the cpu backend reads them, if `backend` may be it and
    it can. Refuses a --revision of a model that is not on the hub."""
    if revision is not None and (model.startswith("builtin:") or Path(model).exists()):
        raise SolmError(f"--revision: it goes with a model on the hub, which {model!r} is not")
    with option(typed):
        return model_facts(model, revision, trust, on_engine=backend != "torch")


def tokenizer(
    model: str, revision: str | None = None, trust: bool = False, system: str | None = None, typed: str = "--model"
) -> Any:
    """The tokenizer of --model, for `load`; None where it comes with the weights, as in a GGUF file.

    Refuses a model without one, and a --system message for one without a chat template or that is not valid Unicode.
    """
    from solm.backends.tokenizer import has_chat_template, model_tokenizer

    if system is not None:
        check_unicode(system, "--system: the message")
    with option(typed):
        templated = has_chat_template(model)
        found = model_tokenizer(model, trust, revision) if templated is None else None
    if system is not None and not (templated if found is None else found.chat_template):
        raise SolmError(
            "--system: this model has no chat template, so a system message has no place; put it into the prompt"
        )
    return found


def trained_policy(
    name: str | None, config: ModelFacts, space: "ActionSpace | None" = None, typed: str = "--policy"
) -> "TrainedPolicy | None":
    """The trained policy called `name`, choosing in `space` where one is given; None for None. ``auto`` is one that
    ships for models of this family and size.

    Raises `PolicyMismatchError` where it belongs to another model than that of `config`, and `SolmError` for ``auto``
    where none ships for it.
    """
    if name is None:
        return None
    with option(typed):
        if name in DECIDERS:
            raise SolmError(f"{name} is no trained policy; give a folder, a hub id or builtin:...")
        trained = policy_called(name, lambda: config)
        trained.check(config.identity(trained.config.base), config.shapes)
    if space is None:
        return trained
    with option("--space"):
        return trained.with_space(space)


def own_policy(config: ModelFacts) -> str | None:
    """What to type for the policy that ships for the model of `config`; None where none does."""
    try:
        return f"--policy {AUTO} ({shipped_policy(config)})"
    except SolmError:
        return None


def mention_policy(config: ModelFacts) -> None:
    """Say which policy ships for a model that is run without one. Its weights are compared when it is loaded."""
    from solm.cli.output import say

    if own := own_policy(config):
        say(f"solm: budgets treat all layers alike; {own} was made for a model of this shape")


def backend(name: str, precision: str | None, kv_cache_dtype: str | None, dtype: str) -> None:
    """Check the options that say where and in what numbers a model is computed."""
    from solm.backends.cpu.engine import KV_CACHE_DTYPES, check_precision
    from solm.backends.cpu.files.layout import PRECISIONS
    from solm.backends.names import dtype_name
    from solm.runtime.load import BACKENDS

    for typed, value, known in (
        ("--backend", name, BACKENDS), ("--precision", precision, PRECISIONS),
        ("--kv-cache-dtype", kv_cache_dtype, KV_CACHE_DTYPES),
    ):  # fmt: skip
        if value is not None and value not in known:
            raise SolmError(f"{typed}: unknown value {value!r}; choose one of {', '.join(known)}")
    with option("--dtype"):
        dtype_name(dtype)
    if name == "torch":
        for typed, given in (("--precision", precision is not None), ("--kv-cache-dtype", kv_cache_dtype is not None)):
            if given:
                raise SolmError(f"{typed}: it needs --backend cpu; the torch backend computes in the model's own dtype")
    if name == "cpu" and dtype != "auto":
        raise SolmError(f"--dtype: {dtype} needs --backend torch; the cpu backend has --precision")
    with option("--kv-cache-dtype"):
        check_precision(precision or "auto", kv_cache_dtype or "auto")


def room(config: ModelFacts, tokens: int, typed: str) -> None:
    """Refuse more tokens than the model has positions for."""
    if config.context is not None and tokens > config.context:
        raise ContextLengthError(f"{typed}: {tokens} tokens exceed this model's context of {config.context}")


def out_file(path: Path | None, typed: str = "--out") -> None:
    """Check that a file can be written at `path`."""
    if path is not None and path.is_dir():
        raise SolmError(f"{typed}: {path} is a folder; give a file")
    if path is None:
        return
    if not is_stream(path):
        _writable(place_of(path).parent, path, typed)
    elif not os.access(path, os.W_OK):
        raise SolmError(f"{typed}: cannot write {path}: {os.strerror(errno.EACCES)}")


def out_folder(path: Path, typed: str = "--out") -> None:
    """Check that `path` is a folder that can be written to, or can become one."""
    _writable(path, path, typed)


def _writable(folder: Path, path: Path, typed: str) -> None:
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise SolmError(f"{typed}: cannot write {path}: {existing} is not a folder")
    try:  # permissions do not tell everything: a file system may be read-only or none that takes files
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise SolmError(f"{typed}: cannot write {path}: {existing}: {error.strerror}") from error


def plot_file(path: Path | None) -> None:
    """Check that a picture can be drawn and written at `path`."""
    if path is None:
        return
    if path.suffix not in (".png", ".svg"):
        raise SolmError(f"--plot: {path} is neither .png nor .svg")
    if importlib.util.find_spec("matplotlib") is None:
        raise SolmError("--plot: pictures need matplotlib; run: pip install '.[eval]' in a checkout of solm")
    out_file(path, "--plot")
