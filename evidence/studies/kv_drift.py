"""KV drift: how long a burst of cheap steps makes the dense steps after it worse.

Runs `burst` steps of an action, all of it and each of its axes alone, then dense ones. The keys and values that the
burst wrote stay in the cache; attention alone leaves those of the first layer as they were.

    python evidence/studies/kv_drift.py --data pydoc:heldout --action k010-s040-q5 --burst 16 --out drift.json
"""

from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from evidence.record import Record, record
from evidence.studies.common import TextOptions, kept, main, progress
from solm.core.actions import AXES, DENSE, Action
from solm.core.errors import SolmError
from solm.evaluation.result import paired_difference
from solm.runtime.language_model import LanguageModel

_BATCH = 8


class Options(TextOptions):
    backend: str = Field("torch", description="torch, or cpu.")
    action: str = Field("k010-s040-q5", description="The cheap action, as a tag: attention, MLP, bits.")
    burst: int = Field(16, ge=1, description="Cheap steps.")
    stretch: int = Field(16, ge=1, description="Dense steps after them that are averaged.")


def run(options: Options, partial: Path | None) -> Record:
    """Raises `SolmError` where the burst leaves no stretch after it."""
    action = Action.from_tag(options.action)
    if options.burst + options.stretch > options.length:
        raise SolmError(f"--burst {options.burst} must leave {options.stretch} of {options.length} tokens after it")
    return measure(options.load(), action, options, partial)


def measure(lm: LanguageModel, action: Action, options: Options, partial: Path | None) -> Record:
    """Results: nats per token above the dense run of the same text, in the burst and in every stretch after it, with
    95 % intervals over texts, by kind of burst."""
    alone = {axis: DENSE._replace(**{axis: getattr(action, axis)}) for axis in AXES}
    kinds = {"all": action} | {axis: some for axis, some in alone.items() if some != DENSE}
    windows, fingerprints = options.windows(lm)
    settings = options.model_dump(mode="json") | {"data_fingerprint": fingerprints}
    parts, batches = kept(partial, lm, settings), windows.split(_BATCH)
    lost: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    for index, batch in enumerate(batches):
        progress("batches of texts", index, len(batches))
        found = parts.get(str(index), lambda batch=batch: _batch(lm, batch, kinds, options))  # type: ignore[misc]
        for kind in kinds:
            lost[kind] += found[kind]
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
    return paired_difference(rows.mean(1), np.zeros(len(rows))).model_dump()


def lines(found: Record) -> list[str]:
    shown = []
    for name, points in found.results["after"].items():
        during, stretch = found.results["during"][name]["value"], found.settings["stretch"]
        shown.append(f"{name:10} during {during:+.3f} nats/token; after, by {stretch} tokens:")
        shown.append("  ".join("{value:+.4f} [{low:+.4f}, {high:+.4f}]".format(**point) for point in points))
    return shown


if __name__ == "__main__":
    main(Options, run, lines, __doc__)
