"""Options and small conversions that several verbs share."""

from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from solm.core.errors import SolmError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from solm.core.actions import ActionSpace
    from solm.policies.artifact import TrainedPolicy

Settings = TypeVar("Settings", bound=BaseModel)

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Hub id, folder, .gguf file or builtin:smollm2-135m.", show_default=True)
]
PolicyOption = Annotated[str | None, typer.Option("--policy", "-p", help="Folder or hub id of a trained policy.")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
BackendOption = Annotated[
    str, typer.Option(help="reference; native: steps on the compiled CPU engine; auto: native where it can be.")
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        help="Weights of the cpu backend: float32, bfloat16 (default), int8, int4 where they lie on such a grid, or "
        "nested: an MLP's in two halves of 4 bits, for policies that say how many are read."
    ),
]
KvCacheOption = Annotated[
    str, typer.Option("--kv-cache-dtype", help="auto, or int8: half the size, beside weights in int8, int4 or nested.")
]
SeedOption = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]
DEFAULT_MODEL = "builtin:smollm2-135m"


def settings(kind: type[Settings], **values: Any) -> Settings:
    """A settings object, or one line that names the bad value and what is allowed."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise SolmError(f"{name}: {first['msg']} (got {first['input']!r})") from error


def numbers(text: str, name: str) -> tuple[float, ...]:
    """The numbers of a list such as 0.5,0.6."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise SolmError(f"{name}: {text!r} is not a list of numbers such as 0.5,0.6") from None


def in_space(trained: "TrainedPolicy", space: "ActionSpace | None") -> "TrainedPolicy":
    """The policy, choosing in another space where one is given."""
    return trained if space is None else trained.with_space(space)


def output() -> "Console":
    """Standard output; wide enough for the result table where it is not a terminal."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 130
    return console


def progress_bar(shown: bool = True) -> "Progress":
    """A bar with counts, elapsed time and time left, on a terminal's stderr; it vanishes when done."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not (shown and console.is_terminal),
        transient=True,
    )
