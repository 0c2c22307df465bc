"""KV drift: how long a burst of cheap steps makes the dense steps after it worse.

Runs `burst` steps of an action, all of it and each of its axes alone, then dense ones. The keys and values that the
burst wrote stay in the cache; attention alone leaves those of the first layer as they were.

Example: solm study kv-drift --data pydoc:heldout --action k010-s040-q5 --burst 16 --out drift.json --plot drift.svg
"""

from pathlib import Path

import numpy as np
import torch
from pydantic import Field, field_validator

from solm.core.actions import AXES, DENSE, FULL_BITS, Action
from solm.core.errors import SolmError
from solm.core.parts import Parts
from solm.evaluation.pictures import Kind, blank, picture
from solm.evaluation.result import Record, record
from solm.evaluation.statistics import paired_difference
from solm.research.studies import Progress, StudyOptions
from solm.research.texts import windows_of
from solm.runtime.language_model import LanguageModel

_BATCH = 8


class Options(StudyOptions):
    action: str = Field("k010-s040-q5", description="The cheap action, as a tag: attention, MLP, bits.")
    burst: int = Field(16, ge=1, description="Cheap steps.")
    stretch: int = Field(16, ge=1, description="Dense steps after them that are averaged.")

    @field_validator("action")
    @classmethod
    def _check_action(cls, tag: str) -> str:
        try:
            action = Action.from_tag(tag)
        except SolmError as error:
            raise ValueError(str(error)) from error
        if not (0 < action.attention <= 1 and 0 < action.mlp <= 1 and 2 <= action.bits <= FULL_BITS):
            raise ValueError(f"{tag}: shares must be above 0 and at most 1, bits between 2 and {FULL_BITS}")
        return tag


def run(options: Options, partial: Path | None, progress: Progress) -> Record:
    """Raises `SolmError` where the burst leaves no stretch after it."""
    action = Action.from_tag(options.action)
    if options.burst + options.stretch > options.length:
        raise SolmError(f"--burst {options.burst} must leave {options.stretch} of {options.length} tokens after it")
    return measure(options.load(), action, options, partial, progress)


def measure(lm: LanguageModel, action: Action, options: Options, partial: Path | None, progress: Progress) -> Record:
    """Results: nats per token above the dense run of the same text, in the burst and in every stretch after it, with
    95 % intervals over texts, by kind of burst."""
    alone = (
        Action(action.attention, 1.0, FULL_BITS),
        Action(1.0, action.mlp, FULL_BITS),
        Action(1.0, 1.0, action.bits),
    )
    kinds = {"all": action} | {axis: some for axis, some in zip(AXES, alone, strict=True) if some != DENSE}
    streams = options.streams(lm)
    windows = windows_of(streams, options.texts, options.context, options.length, options.seed)
    settings = options.model_dump(mode="json") | {"data_fingerprint": [stream.fingerprint for stream in streams]}
    parts = Parts(partial, [settings, lm.identity.model_dump(mode="json")])
    batches = windows.split(_BATCH)
    lost: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    for index, batch in enumerate(batches):
        progress("texts", index, len(batches))
        found = parts.get(str(index), lambda batch=batch: _batch(lm, batch, kinds, options))  # type: ignore[misc]
        for kind in kinds:
            lost[kind] += found[kind]
    progress("texts", len(batches), len(batches))
    starts = range(options.burst, options.length - options.stretch + 1, options.stretch)
    during, after = {}, {}
    for kind, rows in lost.items():
        table = np.array(rows)
        during[kind] = _interval(table[:, : options.burst])
        after[kind] = [_interval(table[:, start : start + options.stretch]) for start in starts]
    return record("kv-drift", settings, {"during": during, "after": after})


def _batch(
    lm: LanguageModel, windows: torch.Tensor, kinds: dict[str, Action], options: Options
) -> dict[str, list[list[float]]]:
    """Nats of every token above the dense run, by kind of burst [texts, length]."""
    session = lm.session(capacity=options.context)
    session.prefill(windows[:, : options.context])

    def nats(action: Action) -> torch.Tensor:
        keep = torch.tensor(DENSE, dtype=torch.float64).repeat(len(windows), options.length, 1)
        keep[:, : options.burst] = torch.tensor(action, dtype=torch.float64)
        rows = session.fork(1, capacity=options.length + lm.sparsity.page_size)
        return -rows.score(windows[:, options.context :], keep).log_probabilities.double().cpu()

    dense = nats(DENSE)
    return {kind: (nats(action) - dense).tolist() for kind, action in kinds.items()}


def _interval(rows: np.ndarray) -> dict[str, float]:
    return paired_difference(rows.mean(1), np.zeros(len(rows)))._asdict()


def lines(found: Record) -> list[str]:
    shown = []
    for name, points in found.results["after"].items():
        during, stretch = found.results["during"][name]["value"], found.settings["stretch"]
        shown.append(f"{name:10} during {during:+.3f} nats/token; after, by {stretch} tokens:")
        shown.append("  ".join("{value:+.4f} [{low:+.4f}, {high:+.4f}]".format(**point) for point in points))
    return shown


def plot(found: Record, kind: Kind) -> bytes:
    """What is lost after the burst, by distance from its end."""
    figure, axes = blank()
    for name, points in found.results["after"].items():
        x = (np.arange(len(points)) + 0.5) * found.settings["stretch"]
        middle, low, high = (np.array([point[end] for point in points]) for end in ("value", "low", "high"))
        axes.errorbar(x, middle, yerr=[middle - low, high - middle], marker="o", capsize=3, lw=1.5, label=name)
    axes.axhline(0, color="#495057", ls="--", lw=1)
    axes.set_xlabel(f"dense tokens after a burst of {found.settings['burst']}")
    axes.set_ylabel("nats per token above dense")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, title="burst on")
    return picture(figure, kind)
