"""`solm inspect`."""

from typing import Annotated

import typer


def inspect(
    model: Annotated[str, typer.Argument(help="Hub id, folder, .gguf file or builtin:smollm2-135m.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say which axes can be controlled on a model, and why not. Reads the configuration only, no weights.

    Example:

        solm inspect Qwen/Qwen3-0.6B
    """
    from json import dumps

    from solm.models.families import probe
    from solm.models.load import skeleton

    capability = probe(skeleton(model))
    report = {
        "model": model,
        "family": capability.family,
        "tested": capability.tested,
        "axes": {
            axis: {"supported": supported, "reason": capability.reasons.get(axis)}
            for axis, supported in capability.axes.items()
        },
        "sliding_window_layers": capability.sliding_layers,
        "shapes": None if capability.shapes is None else capability.shapes.model_dump(),
    }
    if json:
        print(dumps(report))
        return
    print(f"{model}: family {capability.family}{'' if capability.tested else ' (not among the tested families)'}")
    for axis, supported in capability.axes.items():
        print(f"  {axis:10} {'yes' if supported else 'no: ' + capability.reasons[axis]}")
    if capability.sliding_layers and capability.shapes is not None:
        print(
            f"  {capability.sliding_layers} of {capability.shapes.layers} layers have a sliding window; "
            "the attention axis acts on the others"
        )
