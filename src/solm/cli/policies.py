"""`solm policies`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from solm.cli import checks
from solm.cli.options import JsonOption
from solm.core.errors import SolmError

if TYPE_CHECKING:
    from solm.policies.artifact import PolicyConfig


def policies(
    action: Annotated[
        str, typer.Argument(help="list: the policies that come with solm; show: one policy; pull: one from the hub.")
    ] = "list",
    name: Annotated[
        str | None, typer.Argument(help="show: folder, hub id or builtin:... of a policy. pull: hub id.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="pull: folder for the policy; by default the hub's cache.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a policy on the hub.")] = None,
    json: JsonOption = False,
) -> None:
    """List the policies that come with solm, describe one, or download one.

    \b
    Examples:
      solm policies
      solm policies show builtin:smollm2-135m
      solm policies show runs/a/policy --json
      solm policies pull me/my-policy --out policies/mine
    """
    from solm.cli.output import curve_table, output, print_json
    from solm.policies.artifact import TrainedPolicy, shipped

    if action not in ("list", "show", "pull"):
        raise SolmError(f"ACTION: unknown action {action!r}; choose list, show or pull")
    if out is not None and action != "pull":
        raise SolmError(f"--out: it goes with pull, not {action}")
    if revision is not None and (action == "list" or (name or "").startswith("builtin:") or Path(name or ".").is_dir()):
        raise SolmError("--revision: it goes with a policy on the hub")
    if action == "pull":
        folder = _pull(name, out, revision)
        if json:
            print_json({"policy": name, "folder": str(folder)})
        else:
            print(folder)
        return
    if action == "show":
        if name is None:
            raise SolmError("NAME: give the policy to show, such as: solm policies show builtin:smollm2-135m")
        with checks.option("NAME"):
            trained = TrainedPolicy.from_pretrained(name, revision=revision)
        told, measured = _told(name, trained.config), trained.curve
        if json:
            print_json(told if measured is None else told | measured.told())
            return
        for key, value in told.items():
            if isinstance(value, dict):
                print(key)
                for part, content in _flat(value):
                    print(f"  {part:28} {content}")
            else:
                print(f"{key:30} {value}")
        if measured is not None:
            output().print(curve_table(measured))
        return
    if name is not None:
        raise SolmError(f"NAME: list takes none; run: solm policies show {name}")
    found = [_told(policy, TrainedPolicy.from_pretrained(policy).config) for policy in shipped()]
    if json:
        print_json({"policies": found})
        return
    for told in found:
        print(f"{told['name']:28} for {told['base']['name']}, {told['method']}, {told['actions']} actions")


def _pull(name: str | None, out: Path | None, revision: str | None) -> Path:
    """Download the policy `name` of the hub, check it, and return the folder that it lies in."""
    from solm.core.curve import CURVE
    from solm.core.files import write_bytes
    from solm.policies.artifact import CARD, CONFIG, WEIGHTS, TrainedPolicy, from_hub

    if name is None:
        raise SolmError("NAME: give the hub id of the policy to pull, such as: solm policies pull me/my-policy")
    if name.startswith("builtin:") or Path(name).is_dir():
        raise SolmError(f"NAME: {name} is here already; pull takes a hub id such as me/my-policy")
    if out is not None:
        checks.out_folder(out)
        if (out / CONFIG).exists():
            raise SolmError(f"--out: {out} holds a policy already; give another folder")
    with checks.option("NAME"):
        folder = from_hub(name, revision)
        TrainedPolicy.from_pretrained(folder)
    if out is None:
        return folder
    for part in (WEIGHTS, CARD, CURVE, CONFIG):  # the configuration last: with it the folder is a policy
        if (folder / part).is_file():
            write_bytes(out / part, (folder / part).read_bytes())
    return out


def _told(name: str, config: "PolicyConfig") -> dict[str, Any]:
    """What a policy is, without what only machines read."""
    provenance = dict(config.provenance)
    parts = {"thresholds": config.sparsity.thresholds, "allocation": config.sparsity.allocation}
    layers = {name: None if part is None else f"{part.layers} layers" for name, part in parts.items()}
    return {
        "name": name,
        "method": provenance.get("config", {}).get("method", "unknown"),
        "actions": len(config.space),
        "base": config.base.model_dump(exclude={"sample", "weights"}),
        "space": config.space.model_dump(mode="json"),
        "sparsity": config.sparsity.model_dump(mode="json", exclude=set(parts)) | layers,
        "provenance": {**provenance.pop("made", {}), **provenance},
    }


def _flat(told: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Every value with its path, such as ``config.context``."""
    found = []
    for key, value in told.items():
        if isinstance(value, dict):
            found += _flat(value, f"{before}{key}.")
        else:
            found.append((before + key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return found
