"""The folder of a fit: what it is made for, the sizes of its phases, and which outputs are whole. The owner of
``fit.json``."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from solm.core.errors import RunMismatchError
from solm.core.files import locked, read_model, write_json
from solm.fit.plan import Sizes

MANIFEST = "fit.json"
TIMINGS, THRESHOLDS, ALLOCATION, OWN_TEXTS = "timings.json", "thresholds.json", "allocation.json", "own-texts.json"
SAMPLES, COLLECTED = "samples", "samples.json"
COSTS, LONG_COSTS = "level-costs.json", "long-contexts.json"
FITTED, EVALUATION, POLICY = "fitted/policy_config.json", "evaluation.json", "policy/policy_config.json"
REPORT = "report.html"
Files = Sequence[str] | None
"""Names of files in the folder; None: none."""


class About(BaseModel, frozen=True, extra="forbid"):
    """What a fit is made for; a folder holds one. data: fingerprints of the texts, by name."""

    model: str
    """The base model's identity as JSON, without the name that it was loaded by."""
    backend: str
    processor: str
    threads: int
    mlp_site: str
    """What its budgets leave out, as `SparsityConfig.mlp_site` has it: channels, or experts."""
    data: dict[str, str]
    minutes: float
    seed: int


class _Manifest(BaseModel, extra="forbid"):
    format: Literal[2] = 2
    about: About
    sizes: dict[str, Sizes] = Field(default_factory=dict)
    done: dict[str, tuple[str, str]] = Field(default_factory=dict)
    """By phase the digests of what it was made from and of what it made."""
    beside: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """By a phase's output the further files that it wrote."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """By phase how long it ran, interrupted runs included."""


class FitFolder:
    """An open folder, locked for one process; see `opened`."""

    key = ""
    """Of the phase under way: a digest of the files that it reads."""

    def __init__(self, path: Path, manifest: _Manifest):
        self.path, self._manifest = path, manifest

    @classmethod
    @contextmanager
    def opened(cls, path: Path, about: About) -> Iterator[Self]:
        """The folder `path`, made if need be. Where no phase is done yet, a fit of other minutes takes its place.

        Raises `RunMismatchError` where it holds a fit of something else or another process is fitting in it, and
        `DamagedFileError` for a damaged manifest.
        """
        with locked(path, "fitting"):
            manifest = read_model(path / MANIFEST, _Manifest) if (path / MANIFEST).exists() else _Manifest(about=about)
            if not manifest.done and manifest.about.model_copy(update={"minutes": about.minutes}) == about:
                manifest = manifest if manifest.about == about else _Manifest(about=about)
            for name in About.model_fields:
                there, here = getattr(manifest.about, name), getattr(about, name)
                if there != here:
                    values = "" if name in ("model", "data") else f" ({there} there, {here} here)"
                    raise RunMismatchError(
                        f"--out: {path} holds a fit with another {name}{values}; choose another folder"
                    )
            yield cls(path, manifest)

    def sizes(self, phase: str, make: Callable[[], Sizes]) -> Sizes:
        """The sizes that `phase` was begun with; of a new one what `make` returns."""
        if phase not in self._manifest.sizes:
            self._manifest.sizes[phase] = make()
            self._save()
        return self._manifest.sizes[phase]

    def phase(self, name: str, output: str, inputs: list[str], make: Callable[[], Files]) -> bool:
        """Run `make`, which writes the file `output` from the files `inputs`, unless it is there already: whole, and
        made from just these inputs. Whether it ran.

        make: gives the further files that it has written, which count as parts of `output`."""
        if self.is_done(name, output, inputs):
            return False
        self.key = self._digest(inputs)
        begun = time.monotonic()
        try:
            self._manifest.beside[output] = tuple(make() or ())
            self._manifest.done[name] = (self.key, self._digest([output]))
        finally:  # what an interrupted run has taken is no longer left for later phases
            taken = self._manifest.seconds.get(name, 0.0) + time.monotonic() - begun
            self._manifest.seconds[name] = round(taken, 1)
            self._save()
        return True

    @property
    def is_planned(self) -> bool:
        """Whether a phase has its sizes already."""
        return bool(self._manifest.sizes)

    @property
    def seconds(self) -> dict[str, float]:
        """By phase how long it ran, interrupted runs included."""
        return dict(self._manifest.seconds)

    def is_done(self, name: str, output: str, inputs: list[str]) -> bool:
        """Whether `phase` would skip it."""
        return self._manifest.done.get(name) == (self._digest(inputs), self._digest([output]))

    def _digest(self, names: list[str]) -> str:
        digest = hashlib.sha256()
        for file in (file for name in names for file in (name, *self._manifest.beside.get(name, ()))):
            path = self.path / file
            digest.update(path.read_bytes() if path.is_file() else b"missing")
        return digest.hexdigest()

    def _save(self) -> None:
        content: dict[str, Any] = self._manifest.model_dump(mode="json")
        write_json(self.path / MANIFEST, content)
