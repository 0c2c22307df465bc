"""`solm policies`."""

from pathlib import Path
from typing import Any

from solm.cli import checks
from solm.cli.output import Result, curve_table
from solm.core.curve import CURVE
from solm.core.errors import SolmError, argument
from solm.core.files import write_bytes
from solm.policies.artifact import CARD, CONFIG, WEIGHTS, PolicyConfig, TrainedPolicy, from_hub, shipped

_ACTIONS = ("list", "show", "pull", "push")


def policies(
    action: str = "list",
    name: str | None = None,
    repository: str | None = None,
    /,
    out: Path | None = None,
    revision: str | None = None,
    private: bool = False,
) -> Result:
    """List the policies that come with solm, describe one, download one, or upload one with its model card.

    \b
    Examples:
      solm policies
      solm policies show builtin:smollm2-135m-cpu
      solm policies show runs/a/policy --json
      solm policies pull me/my-policy --out policies/mine
      solm policies push runs/a/policy me/my-policy

    Args:
        action: list: the policies that come with solm; show: one policy; pull: one from the hub; push: one to it.
        name: show: folder, hub id or builtin:... of a policy. pull: hub id. push: folder.
        repository: push: hub repository, such as me/my-policy.
        out: pull: folder for the policy; by default the hub's cache.
        revision: Branch, tag or commit of a policy on the hub.
        private: push: make the repository private.
    """
    if action not in _ACTIONS:
        raise SolmError(f"ACTION: unknown action {action!r}; choose {', '.join(_ACTIONS[:-1])} or {_ACTIONS[-1]}")
    for typed, given, where in (("--out", out is not None, "pull"), ("--private", private, "push")):
        if given and action != where:
            raise SolmError(f"{typed}: it goes with {where}, not {action}")
    if repository is not None and action != "push":
        raise SolmError(f"REPOSITORY: it goes with push, not {action}")
    if revision is not None and (
        action in ("list", "push") or (name or "").startswith("builtin:") or Path(name or ".").is_dir()
    ):
        raise SolmError("--revision: it goes with a policy on the hub")
    if action == "list":
        return _list(name)
    if action == "show":
        return _show(name, revision)
    if action == "pull":
        return _pull(name, out, revision)
    return _push(name, repository, private)


def _list(name: str | None) -> Result:
    """The policies that ship."""
    if name is not None:
        raise SolmError(f"NAME: list takes none; run: solm policies show {name}")
    described = [_described(each, TrainedPolicy.from_pretrained(each).config) for each in shipped()]
    lines = [f"{each['name']:28} for {each['base']['name']}, {each['actions']} actions" for each in described]
    return Result({"policies": described}, lines)


def _show(name: str | None, revision: str | None) -> Result:
    """One policy."""
    if name is None:
        raise SolmError("NAME: give the policy to show, such as: solm policies show builtin:smollm2-135m-cpu")
    with argument("name"):
        trained = TrainedPolicy.from_pretrained(name, revision=revision)
    described, curve = _described(name, trained.config), trained.curve
    measured = {} if curve is None else curve.as_dict()
    tables = [] if curve is None else [curve_table(curve)]
    return Result(described | measured, [*(f"{key:30} {value}" for key, value in _flat(described)), *tables])


def _pull(name: str | None, out: Path | None, revision: str | None) -> Result:
    """Download the policy `name` of the hub and check it."""
    if name is None:
        raise SolmError("NAME: give the hub id of the policy to pull, such as: solm policies pull me/my-policy")
    if name.startswith("builtin:") or Path(name).is_dir():
        raise SolmError(f"NAME: {name} is here already; pull takes a hub id such as me/my-policy")
    if out is not None:
        checks.out_folder(out)
        if (out / CONFIG).exists():
            raise SolmError(f"--out: {out} holds a policy already; give another folder")
    with argument("name"):
        folder = from_hub(name, revision)
        TrainedPolicy.from_pretrained(folder)
    if out is not None:
        for part in (WEIGHTS, CARD, CURVE, CONFIG):  # the configuration last: with it the folder is a policy
            if (folder / part).is_file():
                write_bytes(out / part, (folder / part).read_bytes())
        folder = out
    return Result({"policy": name, "folder": str(folder)}, [str(folder)])


def _push(name: str | None, repository: str | None, private: bool) -> Result:
    """Upload the policy in the folder `name` with its card."""
    if name is None or repository is None:
        missing = "NAME: give the folder of the policy" if name is None else "REPOSITORY: give the hub repository"
        raise SolmError(f"{missing}, such as: solm policies push runs/a/policy me/my-policy")
    with argument("name"):
        trained = TrainedPolicy.from_pretrained(name)
    with argument("repository"):
        address = trained.push_to_hub(repository, private)
    return Result({"policy": name, "address": address}, [address])


def _described(name: str, config: PolicyConfig) -> dict[str, Any]:
    """What a policy is, without what only machines read."""
    provenance = dict(config.provenance)
    parts = {"thresholds": config.sparsity.thresholds, "allocation": config.sparsity.allocation}
    layers = {name: None if part is None else f"{part.layers} layers" for name, part in parts.items()}
    return {
        "name": name,
        "method": provenance.get("config", {}).get("method", "unknown"),
        "actions": len(config.space),
        "base": config.base.model_dump(exclude={"weights"}),
        "space": config.space.model_dump(mode="json"),
        "sparsity": config.sparsity.model_dump(mode="json", exclude=set(parts)) | layers,
        "provenance": {**provenance.pop("made", {}), **provenance},
    }


def _flat(values: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Every value with its path, such as ``config.context``."""
    found = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _flat(value, f"{before}{key}.")
        else:
            found.append((before + key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return found
