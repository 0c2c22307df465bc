"""A run folder: ``run.json``, what the run is; ``checkpoint.safetensors``, policy, optimiser and log after some update;
``log.jsonl``, the log by itself; and ``policy/``, the policy after the last update. The owner of that format."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from safetensors import safe_open

from solm.core.errors import DamagedFileError, PolicyMismatchError, RunMismatchError, first_line
from solm.core.files import locked, read_model, read_tensors, write_json, write_tensors, write_text
from solm.paper.config import TrainConfig
from solm.paper.network import PolicyNetwork
from solm.policies.identity import BaseIdentity

CHECKPOINT, LOG, RUN = "checkpoint.safetensors", "log.jsonl", "run.json"


class Run(BaseModel, frozen=True, extra="forbid"):
    """What a run is. model, text: what its names stood for at the start; text has the fingerprint of every source."""

    config: TrainConfig
    model: BaseIdentity
    text: tuple[str, ...]


@contextmanager
def run_folder(path: Path, run: Run) -> Iterator[None]:
    """Hold the folder `path`, made if need be, for `run`. Raises `RunMismatchError` where it holds another run, or
    another process is training in it."""
    with locked(path, "training"):
        if (path / RUN).exists():
            known = read_model(path / RUN, Run)
            changed = [
                f"{name}: {there!r} there, {getattr(run.config, name)!r} here"
                for name, there in known.config
                if name != "updates" and there != getattr(run.config, name)
            ]
            changed += ["another text"] if known.text != run.text else []
            try:
                known.model.check(run.model)
            except PolicyMismatchError:
                changed.append("another model")
            if changed:
                raise RunMismatchError(f"{path} holds another run ({', '.join(changed[:2])}); choose another --out")
            run = known.model_copy(update={"config": run.config})
        write_json(path / RUN, run.model_dump(mode="json"))
        yield


def save(path: Path, network: PolicyNetwork, optimizer: torch.optim.Optimizer, log: list[dict[str, Any]]) -> None:
    """Keep policy and optimiser after the updates that `log` has a record of each."""
    tensors = {f"policy.{name}": value for name, value in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    write_tensors(path / CHECKPOINT, tensors, {"log": json.dumps(log)})
    write_text(path / LOG, "".join(json.dumps(record) + "\n" for record in log))


def restore(path: Path, network: PolicyNetwork, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Load the checkpoint, if there is one; the log up to it. Raises `DamagedFileError`."""
    path = path / CHECKPOINT
    if not path.exists():
        return []
    policy: dict[str, torch.Tensor] = {}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in read_tensors(path).items():
        kind, _, rest = name.partition(".")
        if kind == "policy":
            policy[rest] = value
        else:
            index, _, key = rest.partition(".")
            state.setdefault(int(index), {})[key] = value
    try:
        with safe_open(path, "pt") as file:
            log: list[dict[str, Any]] = json.loads(file.metadata()["log"])
        network.load_state_dict(policy)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise DamagedFileError(f"{path} does not fit this run: {first_line(error)}") from error
    return log
