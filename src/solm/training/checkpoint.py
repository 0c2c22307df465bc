"""A run folder: configuration, checkpoint, log and the finished policy. The owner of that format.

``config.json`` fixes what the run is, and ``origin.json`` which weights and text its names stood for;
``log.jsonl`` has one line per update; ``policy/`` is the policy after the last one.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from solm.core.errors import RunMismatchError, SolmError
from solm.core.files import locked, read_model, write_json
from solm.data.windows import TokenStream
from solm.policies.identity import BaseIdentity, WeightSample
from solm.training.config import RunConfig, ValueTrainConfig
from solm.training.ranks import Ranks

CONFIG, LOG, ORIGIN = "config.json", "log.jsonl", "origin.json"


class _Origin(BaseModel):
    """What a run learns from. text: the fingerprint of every source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: BaseIdentity
    text: tuple[str, ...]


_AFTER_COLLECTION = (
    "batches", "fit", "width", "level_cost_context", "level_cost_length", "level_cost_texts",
)  # fmt: skip
"""Settings of a value run that its samples do not depend on, but for the part of the texts that `fit` holds out."""


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

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to the log."""
        if not self._first:
            return
        try:
            with (self.path / LOG).open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise SolmError(f"cannot write {self.path / LOG}: {error.strerror}") from error


def read_stored(folder: Path) -> ValueTrainConfig:
    """The configuration of the run in `folder`; raises `DamagedFileError`."""
    return read_model(folder / CONFIG, ValueTrainConfig)


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
    names = [
        name
        for name in type(stored).model_fields
        if name not in _AFTER_COLLECTION and getattr(stored, name) != getattr(given, name)
    ]
    if isinstance(stored, ValueTrainConfig) and isinstance(given, ValueTrainConfig):
        there, here = stored.fit.held_out, given.fit.held_out
        if there != here:
            return f"fit.held_out: {there} there, {here} here"
    return ", ".join(f"{name}: {getattr(stored, name)!r} there, {getattr(given, name)!r} here" for name in names[:2])
