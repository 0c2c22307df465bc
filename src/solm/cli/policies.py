"""`solm policies`."""

from pathlib import Path
from typing import Any

from solm.cli.output import Result, in_lines, table
from solm.core.curve import COLUMNS
from solm.core.errors import SolmError, argument
from solm.policies.artifact import PolicyConfig, TrainedPolicy, shipped

_TAKES = {"list": 0, "show": 1, "push": 2}
"""By action how many of NAME and REPOSITORY go with it."""


def policies(
    action: str = "list",
    name: str | None = None,
    repository: str | None = None,
    /,
    revision: str | None = None,
    private: bool = False,
) -> Result:
    """List the policies that come with solm, describe one, or upload one with its model card.

    \b
    Examples:
      solm policies
      solm policies show builtin:smollm2-135m-cpu
      solm policies show runs/a/policy --json
      solm policies push runs/a/policy me/my-policy

    Args:
        action: list: the policies that come with solm; show: one policy; push: one to the hub.
        name: show: folder, hub id or builtin:... of a policy. push: folder.
        repository: push: hub repository, such as me/my-policy.
        revision: Branch, tag or commit of a policy on the hub.
        private: push: make the repository private.
    """
    if action not in _TAKES:
        raise SolmError(f"ACTION: unknown action {action!r}; choose list, show or push")
    given = [value for value in (name, repository) if value is not None]
    if len(given) != _TAKES[action]:
        raise SolmError(f"ACTION: {action} takes {_TAKES[action]} names, got {len(given)} (see solm policies --help)")
    if revision is not None and (action != "show" or str(name).startswith("builtin:") or Path(str(name)).is_dir()):
        raise SolmError("--revision: it goes with show, and a policy on the hub")
    if name is None:
        described = [_described(each, TrainedPolicy.from_pretrained(each).config) for each in shipped()]
        lines = [f"{each['name']:28} for {each['base']['name']}, {each['actions']} actions" for each in described]
        return Result({"policies": described}, lines)
    with argument("name"):
        trained = TrainedPolicy.from_pretrained(name, revision=revision)
    if repository is not None:
        with argument("repository"):
            address = trained.push_to_hub(repository, private)
        return Result({"policy": name, "address": address}, [address])
    shown, curve = _described(name, trained.config), trained.curve
    if curve is None:
        return Result(shown)
    from solm.runtime.clock import known_clock

    clock = known_clock(trained.config.digest)
    timed = None if clock is None else curve.on(clock)
    tables = [table(one.about, COLUMNS, one.rows()) for one in (curve, timed) if one is not None]
    more = {} if timed is None else {"here": timed.as_dict()}
    return Result(shown | curve.as_dict() | more, [*in_lines(shown), *tables])


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
