"""Finding an allocation: what every layer and KV head loses by keeping less, and how a share is dealt out so that they lose
least."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from solm.backends.session import divergences
from solm.core.allocation import KNOTS, Allocation
from solm.core.errors import DamagedFileError, DataError
from solm.core.files import write_text
from solm.core.provenance import command_line, environment
from solm.core.sparsity import SparsityConfig
from solm.policies.artifact import BUILTIN, TrainedPolicy
from solm.runtime.language_model import LanguageModel

SHARES = {"attention": (0.02, 0.12, 0.3), "mlp": (0.5, 0.7)}
"""What one keeps, alone among dense ones, while it is measured: a KV head of pages that may be skipped, a layer of
channels."""
CHECKED = {"attention": (0.1, 0.2, 0.4), "mlp": (0.5, 0.6, 0.7, 0.8)}
"""Keep rates at which the allocation is compared with an even deal, on other texts."""
_STEP = 0.01
_LEAST, _FLATTEST = 1e-5, -0.5  # nats, and nats' logarithm per share: what noise may not undercut


def find_allocation(
    lm: LanguageModel,
    windows: torch.Tensor,
    contexts: Sequence[int],
    out: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Measure on the first half of windows [N, longest context + T], find the allocation, compare it on the second half.

    contexts: tokens read densely first; costs are averaged over them, each on as many tokens of context (so the
    shortest on all texts of its half, longer ones on fewer). The result is written to `out`, and what is measured to a
    file beside it, from which an interrupted run goes on.
    Raises `DataError` for fewer than two windows and for a context in which no step can be controlled, `SolmError` for
    sparsity that have no allocation.
    """
    if len(windows) < 2:
        raise DataError(f"an allocation needs at least 2 texts, got {len(windows)}")
    if min(contexts) < lm.sparsity.always_read:
        raise DataError(
            f"context must be at least {lm.sparsity.always_read} tokens, which are read always, got {min(contexts)}"
        )
    half, length = len(windows) // 2, windows.shape[1] - max(contexts)
    plain = lm.sparsity.under(None)
    own, units = _differing(lm)
    plain.under(_probe("mlp", 1.0, 0, units))  # refused now rather than after the measurements
    kept = out.with_name(out.name + ".partial")
    about = f"{lm.identity.model_dump_json()} {plain.model_dump_json()} {list(contexts)}"
    key = hashlib.sha256(about.encode() + windows.numpy().tobytes()).hexdigest()
    found = _measured(kept, key)
    total = sum(len(own[axis]) * len(shares) for axis, shares in SHARES.items()) + 1
    measured = [_Texts(lm, windows[:half], context, min(contexts), length) for context in contexts]
    costs: dict[str, dict[int, list[float]]] = {axis: {} for axis in SHARES}
    for axis, shares in SHARES.items():
        for unit in own[axis]:
            for share in shares:
                name = f"{axis} {share} {unit}"
                if name not in found:
                    sparsity = plain.under(_probe(axis, share, unit, units))
                    found[name] = float(np.mean([texts.divergence(sparsity, axis, 0.5).mean() for texts in measured]))
                    write_text(kept, json.dumps({"key": key, "found": found}))
                costs[axis].setdefault(unit, []).append(found[name])
                progress(len(found), total)
    noise = _rounding(
        costs["attention"], units["attention"] // units["mlp"], units["mlp"], min(found.values(), default=0)
    )
    allocation = Allocation(
        **{axis: _curves(costs[axis], noise, shares, units[axis]) for axis, shares in SHARES.items()}
    )
    del measured
    checked = []
    for context in contexts:
        checked += _check(_Texts(lm, windows[half:], context, min(contexts), length), plain, allocation)
    told = {
        "kind": "allocation", "command": command_line(), "environment": environment(), "model": lm.identity.model_dump(),
        "texts": half, "contexts": list(contexts), "tokens": length, "costs": costs, "checked": checked,
        "allocation": allocation.model_dump(),
    }  # fmt: skip
    write_text(out, json.dumps(told) + "\n")
    kept.unlink(missing_ok=True)
    progress(total, total)
    return told


def read_allocation(source: str | Path) -> Allocation:
    """The allocation in a file of `find_allocation`, or the one that a policy carries: a folder or one that ships with solm.

    Raises `DataError` without a file or for a policy without an allocation, `DamagedFileError` for another file.
    """
    path = Path(source)
    if str(source).startswith(BUILTIN) or path.is_dir():
        carried = TrainedPolicy.from_pretrained(source).config.sparsity.allocation
        if carried is None:
            raise DataError(f"the policy {source} carries no allocation")
        return carried
    try:
        return Allocation.model_validate(json.loads(path.read_text())["allocation"])
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        reason = "it has no key 'allocation'" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise DamagedFileError(f"{path} does not hold an allocation: {reason}") from error


def deal(costs: np.ndarray, shares: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """Curves of an allocation from costs [units, shares]: what every layer or head loses, in nats, where it alone keeps a
    share.

    The logarithm of a unit's cost is taken to fall linearly with its share, and units' costs to add up. Each hundredth
    goes to the unit that gains most by it, so curves rise and every point spends exactly its average.
    """
    layers = len(costs)
    grid = np.arange(0, 1 + _STEP / 2, _STEP)
    slope, height = np.polyfit(shares, np.log(costs.clip(_LEAST)).T, 1)
    predicted = np.exp(height[:, None] + slope.clip(max=_FLATTEST)[:, None] * grid)
    worth = np.append(-np.diff(predicted, axis=1), np.full((layers, 1), -1.0), axis=1)
    taken, last = np.zeros(layers, dtype=int), 0
    curves = np.zeros((layers, KNOTS))
    for knot in range(KNOTS):
        wanted = layers * knot / (KNOTS - 1)
        while grid[taken].sum() < wanted - 1e-9:
            last = int(worth[np.arange(layers), taken].argmax())
            taken[last] += 1
        curves[:, knot] = grid[taken]
        curves[last, knot] -= grid[taken].sum() - wanted
    curves[:, -1] = 1
    return tuple(tuple(curve) for curve in np.maximum.accumulate(curves.clip(0, 1), axis=1).round(9).tolist())


def _measured(path: Path, key: str) -> dict[str, float]:
    """What an interrupted run of this very kind has measured; nothing where the file is of another, or damaged."""
    try:
        known = json.loads(path.read_text())
        return dict(known["found"]) if known["key"] == key else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _differing(lm: LanguageModel) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Per axis the KV heads or layers that an action changes, between which there is something to deal out, by number;
    and how many there are in all."""
    capability, axes, shapes = lm.backend.capability, lm.backend.capability.axes, lm.shapes
    full = [layer for layer in range(shapes.layers) if layer not in capability.sliding]
    heads = [layer * shapes.kv_heads + head for layer in full for head in range(shapes.kv_heads)]
    own = {"attention": heads, "mlp": list(range(shapes.layers)) if axes["mlp"] else []}
    return own, {"attention": shapes.layers * shapes.kv_heads, "mlp": shapes.layers}


def _rounding(costs: dict[int, list[float]], heads: int, layers: int, least: float) -> np.ndarray:
    """What a change in each layer costs even where the change is nothing [layers], for it rounds all that follows anew.

    That is the least that any of its heads, or of those in the layers before, loses by keeping the largest share: the
    more layers follow, the more is rounded. But no more than three times the least cost of all (twice was measured),
    for all heads of a layer may lose something in earnest. Where nothing tells heads of a layer apart, that least cost.
    """
    own = [min((cost[-1] for unit, cost in costs.items() if unit // heads == layer), default=np.inf)
           for layer in range(layers)]  # fmt: skip
    found = np.minimum.accumulate(own)
    return np.where(heads == 1, least, np.minimum(found, 3 * least))


def _curves(
    costs: dict[int, list[float]], noise: np.ndarray, shares: tuple[float, ...], units: int
) -> tuple[tuple[float, ...], ...]:
    """Curves of all units: those with costs as they are dealt out, the others evenly. noise: of every layer."""
    curves = [tuple(knot / (KNOTS - 1) for knot in range(KNOTS))] * units
    if costs:
        floor = noise[np.array(list(costs)) // (units // len(noise)), None]
        for unit, curve in zip(costs, deal(np.array(list(costs.values())) - floor, shares), strict=True):
            curves[unit] = curve
    return tuple(curves)


class _Texts:
    """Texts that were read densely up to `context`, and what the dense model says after each of `length` more tokens.

    All of `windows`, or as many as hold together what all of them would hold at `shortest`.
    """

    def __init__(self, lm: LanguageModel, windows: torch.Tensor, context: int, shortest: int, length: int):
        windows = windows[: max(1, len(windows) * shortest // context)]
        self.context, self.tokens = context, windows[:, context : context + length]
        self.parent = lm.session(context)
        self.parent.prefill(windows[:, :context])
        self.dense = self.parent.fork(1, self.tokens.shape[1]).extend(self.tokens).logits

    def divergence(self, sparsity: SparsityConfig, axis: str, keep: float) -> np.ndarray:
        """KL from the dense predictions where every step keeps `keep` of one axis: mean of every text [N]."""
        rows = self.parent.fork(1, self.tokens.shape[1], sparsity)
        action = torch.tensor([keep if axis == name else 1.0 for name in SHARES] + [16.0], dtype=torch.float64)
        logits = rows.extend(self.tokens, action.expand(*self.tokens.shape, 3)).logits
        found = divergences(logits.flatten(0, 1)[:, None], self.dense.flatten(0, 1))
        return found.view(self.tokens.shape).mean(1).double().cpu().numpy()


def _probe(axis: str, share: float, unit: int, units: dict[str, int]) -> Allocation:
    """One unit keeps `share` of `axis` whatever is dealt out, the others everything."""
    curves = {name: [(1.0,) * KNOTS] * count for name, count in units.items()}
    curves[axis][unit] = (share,) * (KNOTS - 1) + (1.0,)
    return Allocation(attention=tuple(curves["attention"]), mlp=tuple(curves["mlp"]))


def _check(texts: _Texts, plain: SparsityConfig, allocation: Allocation) -> list[dict[str, Any]]:
    """KL on texts that the allocation was not found on, dealt out evenly and by the allocation, in nats per token."""
    dealt, rows = plain.under(allocation), []
    for axis, keeps in CHECKED.items():
        for keep in keeps:
            even, ours = (texts.divergence(sparsity, axis, keep) for sparsity in (plain, dealt))
            error = float((ours - even).std(ddof=1) / len(even) ** 0.5) if len(even) > 1 else 0.0
            rows.append({"context": texts.context, "axis": axis, "keep": keep, "even": float(even.mean()),
                         "allocation": float(ours.mean()), "standard_error_of_difference": error})  # fmt: skip
    return rows
