"""`solm inspect`."""

from typing import Annotated

import typer


def inspect(
    model: Annotated[str, typer.Argument(help="Hub id, folder, .gguf file or builtin:smollm2-135m.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say which axes can be controlled on a model, what that combines with, and why not. Reads no weights.

    Example:

        solm inspect Qwen/Qwen3-0.6B
    """
    from json import dumps

    from solm.backends.cpu.engine import unsuited
    from solm.backends.torch.families import probe
    from solm.backends.torch.load import skeleton
    from solm.core.sparsity import SparsityConfig

    structure = skeleton(model)
    capability = probe(structure)
    unsuited_to_native = unsuited(structure, SparsityConfig())
    combines = {
        "cpu backend": unsuited_to_native,
        "weights that torchao quantised": None,
        "... on the cpu backend": unsuited_to_native or "it makes int8 and int4 from float weights itself",
        "layers that wait in memory or on the disk": None,
        "layers that compute on several devices": None,
        "layers dealt out to several processes": None,
    }
    report = {
        "model": model,
        "family": capability.family,
        "tested": capability.tested,
        "axes": {
            axis: {"supported": supported, "reason": capability.reasons.get(axis)}
            for axis, supported in capability.axes.items()
        },
        "sliding_window_layers": len(capability.sliding),
        "combines": {name: {"supported": not reason, "reason": reason} for name, reason in combines.items()},
        "shapes": None if capability.shapes is None else capability.shapes.model_dump(),
    }
    if json:
        print(dumps(report))
        return
    print(f"{model}: family {capability.family}{'' if capability.tested else ' (not among the tested families)'}")
    for axis, supported in capability.axes.items():
        print(f"  {axis:10} {'yes' if supported else 'no: ' + capability.reasons[axis]}")
    if len(capability.sliding) and capability.shapes is not None:
        print(
            f"  {len(capability.sliding)} of {capability.shapes.layers} layers have a sliding window; "
            "the attention axis acts on the others"
        )
    print("combines with")
    for name, reason in combines.items():
        print(f"  {name:42} {'yes' if reason is None else 'no: ' + reason}")
