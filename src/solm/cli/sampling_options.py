"""Options that say how tokens are chosen, the same for `solm generate` and `solm chat`."""

from typing import Annotated, Any

import typer

from solm.cli import checks

TemperatureOption = Annotated[
    float | None,
    typer.Option(
        help="Sample at this temperature; greedy at 0, and where none of this, --top-p, --top-k and --min-p is given.",
        min=0,
    ),
]
TopPOption = Annotated[
    float | None, typer.Option(help="Sample from the likeliest tokens of this total probability.", min=0, max=1)
]
TopKOption = Annotated[
    int | None, typer.Option(help="Sample from so many of the likeliest tokens; by default 50; 0: all.", min=0)
]
MinPOption = Annotated[
    float | None, typer.Option(help="Lowest probability, as a share of the likeliest token's.", min=0, max=1)
]
RepetitionOption = Annotated[
    float | None, typer.Option(help="Above 1: fewer repetitions of tokens of the prompt and the reply.", min=1e-3)
]
PresenceOption = Annotated[
    float | None, typer.Option(help="Subtracted from the logit of every token that is in the reply.", min=-2, max=2)
]
FrequencyOption = Annotated[
    float | None, typer.Option(help="Subtracted from a token's logit once per occurrence in the reply.", min=-2, max=2)
]


def sampling(**given: float | None) -> dict[str, Any]:
    """The options that were given, as `LanguageModel.generate` calls them. Raises `SolmError` for nan, infinity."""
    found = {name: value for name, value in given.items() if value is not None}
    for name, value in found.items():
        checks.finite(checks.typed(name), value)
    return found
