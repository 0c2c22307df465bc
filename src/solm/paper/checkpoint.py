"""A run folder: configuration, checkpoint, log and the finished policy. The owner of that format.

``config.json`` fixes what the run is, and ``origin.json`` which weights and text its names stood for;
``checkpoint.safetensors`` holds policy and optimiser after some update;
``log.jsonl`` has one line per update; ``policy/`` is the policy after the last one.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open

from solm.core.errors import DamagedFileError, RunMismatchError, SolmError, first_line
from solm.core.files import locked, read_model, read_tensors, write_json, write_tensors, write_text
from solm.data.windows import TokenStream
from solm.paper.config import RunConfig, TrainConfig
from solm.paper.ranks import Ranks
from solm.policies.identity import BaseIdentity, WeightSample
from solm.policies.network import PolicyNetwork

CHECKPOINT, CONFIG, LOG, ORIGIN = "checkpoint.safetensors", "config.json", "log.jsonl", "origin.json"


class _Origin(BaseModel):
    """What a run learns from. text: the fingerprint of every source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: BaseIdentity
    text: tuple[str, ...]


class RunFolder:
    """One run's folder, locked while it is open.

    Raises `RunMismatchError` where the folder belongs to another configuration or another process is training in
    it. With several processes the first one holds the lock and writes, the others read.
    """

    def __init__(self, path: Path, config: RunConfig, ranks: Ranks | None = None):
        self.path, self._first = path, ranks is None or ranks.first
        if self._first:
            self._open(path, config)
        if ranks is not None:
            ranks.wait()

    def _open(self, path: Path, config: RunConfig) -> None:
        self._lock = ExitStack()
        self._lock.enter_context(locked(path, "training"))
        stored = read_stored(path) if (path / CONFIG).exists() else None
        if stored is not None:
            changed = stored.method if type(stored) is not type(config) else _difference(stored, config)
            if changed:
                raise RunMismatchError(
                    f"{path} holds a run with another configuration ({changed}); choose another --out"
                )
        if stored != config:  # new, or gone on with under settings that may change, such as more batches
            write_json(path / CONFIG, config.model_dump(mode="json"))

    def check_origin(self, model: BaseIdentity, streams: Sequence[TokenStream]) -> None:
        """Write down at the run's first start what it learns from; raises `RunMismatchError` where that has changed
        since, whatever it is called."""
        if not self._first:
            return
        path, now = self.path / ORIGIN, _Origin(model=model, text=tuple(stream.fingerprint for stream in streams))
        if not path.exists():
            write_json(path, now.model_dump(mode="json"))
            return
        changed = _change(read_model(path, _Origin), now, [stream.name for stream in streams])
        if changed:
            raise RunMismatchError(f"{self.path} holds a run that began with {changed}; choose another --out")

    def close(self) -> None:
        if self._first:
            self._lock.close()

    def save(self, network: PolicyNetwork, optimizer: torch.optim.Optimizer, updates: int) -> None:
        """Keep policy and optimiser after `updates` updates."""
        if not self._first:
            return
        tensors = {f"policy.{name}": value for name, value in network.state_dict().items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        write_tensors(self.path / CHECKPOINT, tensors, {"updates": str(updates)})

    def restore(self, network: PolicyNetwork, optimizer: torch.optim.Optimizer) -> int:
        """Load the checkpoint, if there is one; the number of updates it has behind it."""
        path = self.path / CHECKPOINT
        if not path.exists():
            if self._first:
                self._trim_log(0)
            return 0
        tensors = read_tensors(path)
        try:
            with safe_open(path, "pt") as file:
                updates = int(file.metadata()["updates"])
            network.load_state_dict(
                {name.removeprefix("policy."): value for name, value in tensors.items() if name.startswith("policy.")}
            )
            state: dict[int, dict[str, torch.Tensor]] = {}
            for name, value in tensors.items():
                if name.startswith("optimizer."):
                    _, index, key = name.split(".")
                    state.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise DamagedFileError(f"{path} does not fit this run: {first_line(error)}") from error
        if self._first:
            self._trim_log(updates)
        return updates

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to the log."""
        if not self._first:
            return
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


def read_stored(folder: Path) -> TrainConfig:
    """The configuration of the run in `folder`; raises `DamagedFileError`."""
    return read_model(folder / CONFIG, TrainConfig)


def _change(stored: _Origin, now: _Origin, names: Sequence[str]) -> str:
    """What `stored` had in another form than `now`, in words. Of weights only what both could read is compared."""
    if stored.text != now.text:
        pairs = zip(names, stored.text, now.text, strict=False)
        return f"another text in {next((name for name, there, here in pairs if there != here), 'its sources')}"
    if stored.model.difference_of_shape(now.model) is not None:
        return "a model of another shape"
    there, here = stored.model.weights, now.model.weights
    both = [name for name in WeightSample.model_fields if getattr(there, name) and getattr(here, name)]
    return "a model of other weights" if any(getattr(there, name) != getattr(here, name) for name in both) else ""


def _difference(stored: RunConfig, given: RunConfig) -> str:
    """The first fields in which two configurations differ, but for those that a run may go on with."""
    ignored = ("updates", "checkpoint_every", "accumulate")
    names = [
        name
        for name in type(stored).model_fields
        if name not in ignored and getattr(stored, name) != getattr(given, name)
    ]
    return ", ".join(f"{name}: {getattr(stored, name)!r} there, {getattr(given, name)!r} here" for name in names[:2])
