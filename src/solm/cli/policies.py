"""`solm policies`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from solm.cli.options import JsonOption
from solm.core.errors import SolmError

if TYPE_CHECKING:
    from solm.policies.artifact import PolicyConfig


def policies(
    action: Annotated[str, typer.Argument(help="list what ships with solm, or show one policy.")] = "list",
    name: Annotated[str | None, typer.Argument(help="With show: folder, hub id or builtin:... of a policy.")] = None,
    json: JsonOption = False,
) -> None:
    """List the policies that ship with solm, or say what one is.

    \b
    Examples:
      solm policies
      solm policies show builtin:smollm2-135m
      solm policies show runs/a/policy --json
    """
    from solm.cli.output import print_json
    from solm.policies.artifact import TrainedPolicy, shipped

    if action not in ("list", "show"):
        raise SolmError(f"unknown action {action!r}; choose list or show")
    if action == "show":
        if name is None:
            raise SolmError("give the policy to show, such as: solm policies show builtin:smollm2-135m")
        told = _told(name, TrainedPolicy.from_pretrained(name).config)
        if json:
            print_json(told)
            return
        for key, value in told.items():
            if isinstance(value, dict):
                print(key)
                for part, content in _flat(value):
                    print(f"  {part:28} {content}")
            else:
                print(f"{key:30} {value}")
        return
    if name is not None:
        raise SolmError(f"list takes no name; run: solm policies show {name}")
    found = [_told(policy, TrainedPolicy.from_pretrained(policy).config) for policy in shipped()]
    if json:
        print_json({"policies": found})
        return
    for told in found:
        print(f"{told['name']:28} for {told['base']['name']}, {told['method']}, {told['actions']} actions")


def _told(name: str, config: "PolicyConfig") -> dict[str, Any]:
    """What a policy is, without what only machines read."""
    provenance = dict(config.provenance)
    curve = provenance.pop("curve", None)
    allocation = config.sparsity.allocation
    told: dict[str, Any] = {
        "name": name,
        "method": provenance.get("config", {}).get("method", "unknown"),
        "actions": len(config.space),
        "base": config.base.model_dump(exclude={"sample"}),
        "space": config.space.model_dump(mode="json"),
        "sparsity": config.sparsity.model_dump(mode="json", exclude={"allocation"})
        | {"allocation": None if allocation is None else f"{allocation.layers} layers"},
        "provenance": {**provenance.pop("made", {}), **provenance},
    }
    return told if curve is None else told | {"curve": curve}


def _flat(told: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Every value with its path, such as ``config.context``."""
    found = []
    for key, value in told.items():
        if isinstance(value, dict):
            found += _flat(value, f"{before}{key}.")
        else:
            found.append((before + key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return found
