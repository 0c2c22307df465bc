"""Options that say how tokens are chosen, alike for `solm generate` and `solm chat`."""

from typing import Annotated, Any

import typer

from solm.cli import checks

TemperatureOption = Annotated[
    float | None, typer.Option(help="Sample at this temperature; greedy without it and at 0.", min=0)
]
TopPOption = Annotated[float | None, typer.Option(help="Nucleus sampling.", min=0, max=1)]
TopKOption = Annotated[int | None, typer.Option(help="Top-k sampling; 0: of all tokens.", min=0)]
MinPOption = Annotated[
    float | None, typer.Option(help="Least probability, as a share of the likeliest token's.", min=0, max=1)
]
RepetitionOption = Annotated[
    float | None, typer.Option(help="Above 1: fewer repetitions, of the prompt as well.", min=1e-3)
]
PresenceOption = Annotated[
    float | None, typer.Option(help="Subtracted from the logits of tokens that the reply has.", min=-2, max=2)
]
FrequencyOption = Annotated[
    float | None, typer.Option(help="Subtracted from logits for every time that the reply has a token.", min=-2, max=2)
]


def sampling(**given: float | None) -> dict[str, Any]:
    """The options that were given, as `LanguageModel.generate` calls them. Raises `SolmError` for nan, infinity."""
    found = {name: value for name, value in given.items() if value is not None}
    for name, value in found.items():
        checks.finite(checks.typed(name), value)
    return found
