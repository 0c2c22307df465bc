"""Finding an allocation: what every layer and KV head loses when it keeps less, and the curves that lose least."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from solm.core.allocation import KNOTS, Allocation, Curves
from solm.core.cost import equal_mlp, site_parts
from solm.core.errors import DamagedFileError, DataError
from solm.core.files import resumable, write_text
from solm.core.provenance import command_line, environment
from solm.core.sparsity import SparsityConfig
from solm.policies.artifact import BUILTIN, TrainedPolicy
from solm.runtime.language_model import LanguageModel
from solm.training.allocation_curves import UNIFORM, greedy_curves
from solm.training.site_curves import BIT_PROBES, PROBES, bit_losses, priced_curves, site_losses
from solm.training.unit_losses import Group, Losses, Texts, groups_of, name_of

SHARES = {"attention": (0.02, 0.12, 0.3), "mlp": (0.5, 0.7)}
"""By group of units the shares that one unit keeps while the others are dense: a KV head of the pages that may be
skipped, a layer of its MLP's channels."""
SITES_APART = {**SHARES, **PROBES, **BIT_PROBES}
"""The same where the sites of a layer are units of their own: the MLP's input channels (``mlp``) and hidden ones, the
inputs of attention's projections, and the bits of the weights that the MLP's sites read."""
_OWN_CURVES = tuple(axis for axis in SITES_APART if axis not in SHARES)
CHECKED = {"attention": (0.1, 0.2, 0.4), "mlp": (0.5, 0.7, 0.9)}
"""Keep rates at which the allocation is compared with uniform shares, on other texts."""


def axes_of(sparsity: SparsityConfig) -> tuple[str, ...]:
    """What an allocation deals out: sites apart where hidden channels keep less than input channels."""
    return ("attention", *list(PROBES)[: sparsity.sites]) if sparsity.hidden_power > 1 else tuple(SHARES)


def site_axes(sparsity: SparsityConfig) -> tuple[str, ...]:
    """What `solm fit` deals out by one price: the sites of a layer, and the bits of its weights where these can be read
    in part."""
    return (*list(PROBES)[: sparsity.sites], *(BIT_PROBES if sparsity.bits_site == "weights" else ()))


def find_allocation(
    lm: LanguageModel,
    windows: torch.Tensor,
    contexts: Sequence[int],
    out: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    axes: Sequence[str] = tuple(SHARES),
) -> dict[str, Any]:
    """Find an allocation on the first half of windows [N, longest context + T] int64 and evaluate it on the second.

    contexts: numbers of tokens that are read densely first. Costs are averaged over contexts. Every context gets the
    same number of context tokens: the shortest one all texts of the half, longer ones fewer. Texts are measured in
    groups, of which one's logits are in memory at a time. The result is written to `out` and returned. Measurements are
    kept in a file beside it (`files.resumable`), from which an interrupted run goes on. progress: called with
    measurements done and in all. axes: the groups of `SHARES` that are dealt out; others stay uniform. With ``hidden``
    the sites of the MLP, with ``qkv`` and ``out`` those of attention's projections, and with ``input_bits`` and
    ``hidden_bits`` the bits of the MLP's weights have curves of their own, under one price of time.
    Raises `DataError` for fewer than two windows or a context in which no step can be controlled, `SolmError` where the
    model's `SparsityConfig` cannot have an allocation.
    """
    if len(windows) < 2:
        raise DataError(f"an allocation needs at least 2 texts, got {len(windows)}")
    if min(contexts) < lm.sparsity.always_read:
        raise DataError(
            f"context must be at least {lm.sparsity.always_read} tokens, which are always read, got {min(contexts)}"
        )
    with resumable(out) as partial:
        result = _find(lm, windows, contexts, partial, progress, axes)
        write_text(out, json.dumps(result) + "\n")
    return result


def _find(
    lm: LanguageModel,
    windows: torch.Tensor,
    contexts: Sequence[int],
    partial: Path | None,
    progress: Callable[[int, int], None],
    axes: Sequence[str],
) -> dict[str, Any]:
    """What `find_allocation` writes. partial: keeps measurements."""
    half, length = len(windows) // 2, windows.shape[1] - max(contexts)
    plain = lm.sparsity.under(None)
    measurable, units = _units(lm, axes)
    shares = SITES_APART if "hidden" in axes else SHARES
    plain.under(_probe("mlp", 1.0, 0, units))  # raises now, not after the measurements
    about = f"{lm.identity.model_dump_json()} {plain.model_dump_json()} {list(contexts)} {sorted(axes)}"
    groups = groups_of(windows[:half], contexts, length, lm.shapes.vocabulary)
    about += f" {lm.backend.name} {lm.backend.dtype} {len(groups)}"
    key = hashlib.sha256(about.encode() + windows.numpy().tobytes()).hexdigest()
    probes = [(axis, share, unit) for axis, some in measurable.items() for unit in some for share in shares[axis]]
    total, losses = len(groups) * len(probes) + 1, Losses(partial, key)
    for group in groups[losses.groups :]:
        texts = Texts(lm, group, length)
        for axis, share, unit in probes:
            sparsity = plain.under(_probe(axis, share, unit, units))
            losses.measure((axis, share, unit), texts, sparsity)
            progress(losses.groups * len(probes) + len(losses.found), total)
        losses.finish_group()
    costs: dict[str, dict[int, list[float]]] = {axis: {} for axis in measurable}
    for axis, share, unit in probes:
        costs[axis].setdefault(unit, []).append(losses.sums[name_of(axis, share, unit)])
    layers, heads = units["mlp"], units["attention"] // units["mlp"] if costs["attention"] else 1
    apart = bool(costs.get("hidden"))
    if apart:
        of_sites = {axis: np.array(list(costs[axis].values())) for axis in (*PROBES, *BIT_PROBES) if costs.get(axis)}
        rounding = of_sites["mlp"][:, -1]
    else:
        rounding = _rounding_cost(costs["attention"], heads, layers, min(losses.sums.values(), default=0))
    greedy = ["attention"] if apart else list(SHARES)
    curves = {axis: _curves(costs[axis], rounding, SHARES[axis], units[axis]) for axis in greedy}
    if apart:
        limits = plain.thresholds or lm.backend.channel_thresholds(windows[:half, : min(contexts)], plain.sites)
        of_bits = bit_losses(of_sites, plain.sites) if costs.get("input_bits") else None
        curves |= priced_curves(
            site_losses(of_sites, np.array(limits.limits)), site_parts(plain, lm.shapes), of_bits, plain.upper_bits_part
        )
    allocation = Allocation(**curves)
    others = groups_of(windows[half:], contexts, length, lm.shapes.vocabulary)
    checked = _check(lm, others, length, allocation, [axis for axis in CHECKED if axis in axes])
    result = {
        "kind": "allocation", "command": command_line(), "environment": environment(),
        "model": lm.identity.model_dump(exclude={"weights", "sample"}),
        "texts": half, "contexts": list(contexts), "tokens": length, "costs": costs, "checked": checked,
        "allocation": allocation.model_dump(),
    }  # fmt: skip
    progress(total, total)
    return result


def read_allocation(source: str | Path) -> Allocation:
    """The allocation in a file of `find_allocation`, or that of a policy: a folder, or the name of a builtin policy.

    Raises `DataError` where there is no file or the policy has no allocation, `DamagedFileError` for any other content.
    """
    path = Path(source)
    if str(source).startswith(BUILTIN) or path.is_dir():
        carried = TrainedPolicy.from_pretrained(source).config.sparsity.allocation
        if carried is None:
            raise DataError(f"the policy {source} has no allocation")
        return carried
    try:
        return Allocation.model_validate(json.loads(path.read_text())["allocation"])
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        reason = "it has no key 'allocation'" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise DamagedFileError(f"{path} does not hold an allocation: {reason}") from error


def trusted(result: dict[str, Any]) -> Allocation:
    """The allocation in a result of `find_allocation`. An axis is uniform where, on the texts left out, it lost more on
    average than uniform shares."""
    found = Allocation.model_validate(result["allocation"])
    changes: dict[str, Any] = {}
    for axis in CHECKED:
        if not sum(row["even"] - row["allocation"] for row in result["checked"] if row["axis"] == axis) > 0:
            own = dict.fromkeys(_OWN_CURVES) if axis == "mlp" else {}
            changes |= {axis: (UNIFORM,) * len(getattr(found, axis))} | own
    return found.model_copy(update=changes)


def _units(lm: LanguageModel, wanted: Sequence[str]) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Per axis the numbers of the KV heads or layers that an action changes, none where it is not among `wanted`, and
    how many units there are in all."""
    capability, axes, shapes = lm.backend.capability, lm.backend.capability.axes, lm.shapes
    full = [layer for layer in range(shapes.layers) if layer not in capability.sliding]
    heads = [layer * shapes.kv_heads + head for layer in full for head in range(shapes.kv_heads)]
    layers = list(range(shapes.layers)) if axes["mlp"] else []
    groups = {"attention": heads, "mlp": layers} | {site: layers for site in _OWN_CURVES if site in wanted}
    measurable = {axis: units if axis in wanted else [] for axis, units in groups.items()}
    return measurable, {axis: shapes.layers * (shapes.kv_heads if axis == "attention" else 1) for axis in groups}


def _rounding_cost(costs: dict[int, list[float]], heads: int, layers: int, least: float) -> np.ndarray:
    """[layers] nats: what the smallest change in a layer costs, because all later layers round differently.

    It is the lowest cost, at the largest share, of the heads of this layer and of the layers before it, as rounding
    costs more the more layers follow. At most three times the lowest cost of all (twice was measured), since all heads
    of a layer may have a real cost. `least` where heads is 1, as then no head shows the effect alone.
    """
    lowest = [min((cost[-1] for unit, cost in costs.items() if unit // heads == layer), default=np.inf)
              for layer in range(layers)]  # fmt: skip
    found = np.minimum.accumulate(lowest)
    return np.where(heads == 1, least, np.minimum(found, 3 * least))


def _curves(costs: dict[int, list[float]], rounding: np.ndarray, shares: tuple[float, ...], units: int) -> Curves:
    """Curves of all units: `greedy_curves` of those with costs, less the rounding cost [layers], and identity curves of
    the others."""
    curves = [UNIFORM] * units
    if costs:
        floor = rounding[np.array(list(costs)) // (units // len(rounding)), None]
        for unit, curve in zip(costs, greedy_curves(np.array(list(costs.values())) - floor, shares), strict=True):
            curves[unit] = curve
    return tuple(curves)


def _probe(axis: str, share: float, unit: int, units: dict[str, int]) -> Allocation:
    """An allocation under which one unit keeps `share` of `axis` at every keep rate below 1, and the others all."""
    curves = {name: [(1.0,) * KNOTS] * count for name, count in units.items()}
    curves[axis][unit] = (share,) * (KNOTS - 1) + (1.0,)
    return Allocation(**{name: tuple(some) for name, some in curves.items()})


def _check(
    lm: LanguageModel, groups: list[Group], length: int, allocation: Allocation, axes: list[str]
) -> list[dict[str, Any]]:
    """KL on texts that the allocation was not found on, with uniform shares and with the allocation, nats per token, at
    the same realised share."""
    plain = lm.sparsity.under(None)
    allocated, arms = plain.under(allocation), [(axis, keep) for axis in axes for keep in CHECKED[axis]]
    found: dict[tuple[int, str, float], list[tuple[np.ndarray, np.ndarray]]] = {}
    for group in groups:
        texts = Texts(lm, group, length)
        for axis, keep in arms:
            alike = equal_mlp(keep, allocated, plain, lm.shapes) if axis == "mlp" else keep
            pair = texts.divergence(plain, axis, alike), texts.divergence(allocated, axis, keep)
            found.setdefault((group.context, axis, keep), []).append(pair)
    rows = []
    for (context, axis, keep), pairs in found.items():
        even, ours = map(np.concatenate, zip(*pairs, strict=True))
        error = float((ours - even).std(ddof=1) / len(even) ** 0.5) if len(even) > 1 else 0.0
        rows.append({"context": context, "axis": axis, "keep": keep, "even": float(even.mean()),
                     "allocation": float(ours.mean()), "standard_error_of_difference": error})  # fmt: skip
    return rows
