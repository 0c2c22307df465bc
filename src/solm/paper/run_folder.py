"""A run folder: configuration, checkpoint, log and the finished policy. The owner of that format.

``config.json`` fixes what the run is, and ``origin.json`` which weights and text its names stood for;
``checkpoint.safetensors`` holds policy and optimiser after some update;
``log.jsonl`` has one line per update; ``policy/`` is the policy after the last one.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open

from solm.core.errors import DamagedFileError, PolicyMismatchError, RunMismatchError, SolmError, first_line
from solm.core.files import locked, read_model, read_tensors, write_json, write_tensors, write_text
from solm.evaluation.texts import TokenStream
from solm.paper.config import TrainConfig
from solm.paper.network import PolicyNetwork
from solm.policies.identity import BaseIdentity

CHECKPOINT, CONFIG, LOG, ORIGIN = "checkpoint.safetensors", "config.json", "log.jsonl", "origin.json"
_MAY_CHANGE = ("updates", "checkpoint_every", "accumulate")
"""Settings with which a run may go on."""


class _Origin(BaseModel):
    """What a run learns from. text: the fingerprint of every source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: BaseIdentity
    text: tuple[str, ...]


class RunFolder(ExitStack):
    """One run's folder, locked while it is open, as in a ``with`` block.

    Raises `RunMismatchError` where the folder belongs to another configuration or another process is training in it.
    """

    def __init__(self, path: Path, config: TrainConfig):
        super().__init__()
        self.path, self._config = path, config

    def __enter__(self) -> Self:
        self.enter_context(locked(self.path, "training"))
        stored = self.path / CONFIG
        known = read_model(stored, TrainConfig) if stored.exists() else None
        if known is not None:
            changed = [
                f"{name}: {getattr(known, name)!r} there, {getattr(self._config, name)!r} here"
                for name in TrainConfig.model_fields
                if name not in _MAY_CHANGE and getattr(known, name) != getattr(self._config, name)
            ]
            if changed:
                self.close()
                raise RunMismatchError(
                    f"{self.path} holds a run with another configuration ({', '.join(changed[:2])}); choose another "
                    "--out"
                )
        if known != self._config:
            write_json(stored, self._config.model_dump(mode="json"))
        return self

    def check_origin(self, model: BaseIdentity, streams: Sequence[TokenStream]) -> None:
        """Write down at the run's first start what it learns from; raises `RunMismatchError` where that has changed
        since, whatever it is called."""
        path, now = self.path / ORIGIN, _Origin(model=model, text=tuple(stream.fingerprint for stream in streams))
        if not path.exists():
            write_json(path, now.model_dump(mode="json"))
            return
        stored, changed = read_model(path, _Origin), ""
        if stored.text != now.text:
            pairs = zip(streams, stored.text, strict=False)
            other = next((stream.name for stream, known in pairs if stream.fingerprint != known), "its sources")
            changed = f"another text in {other}"
        try:
            stored.model.check(model)
        except PolicyMismatchError:
            changed = changed or "another model"
        if changed:
            raise RunMismatchError(f"{self.path} holds a run that began with {changed}; choose another --out")

    def save(self, network: PolicyNetwork, optimizer: torch.optim.Optimizer, updates: int) -> None:
        """Keep policy and optimiser after `updates` updates."""
        tensors = {f"policy.{name}": value for name, value in network.state_dict().items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        write_tensors(self.path / CHECKPOINT, tensors, {"updates": str(updates)})

    def restore(self, network: PolicyNetwork, optimizer: torch.optim.Optimizer) -> int:
        """Load the checkpoint, if there is one; the number of updates it has behind it."""
        path, updates = self.path / CHECKPOINT, 0
        if path.exists():
            tensors = read_tensors(path)
            try:
                with safe_open(path, "pt") as file:
                    updates = int(file.metadata()["updates"])
                state: dict[int, dict[str, torch.Tensor]] = {}
                policy: dict[str, torch.Tensor] = {}
                for name, value in tensors.items():
                    kind, _, rest = name.partition(".")
                    if kind == "policy":
                        policy[rest] = value
                    else:
                        index, _, key = rest.partition(".")
                        state.setdefault(int(index), {})[key] = value
                network.load_state_dict(policy)
                optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
            except (KeyError, ValueError, TypeError, RuntimeError) as error:
                raise DamagedFileError(f"{path} does not fit this run: {first_line(error)}") from error
        self._trim_log(updates)
        return updates

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to the log."""
        try:
            with (self.path / LOG).open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise SolmError(f"cannot write {self.path / LOG}: {error.strerror}") from error

    def _trim_log(self, updates: int) -> None:
        """Drop log lines of updates that the checkpoint does not contain (they will be done again)."""
        path = self.path / LOG
        if not path.exists():
            return
        kept = []
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["update"] <= updates:
                    kept.append(line + "\n")
            except (json.JSONDecodeError, KeyError):
                break  # half a line: the process was killed while writing it
        write_text(path, "".join(kept))
