"""The allocation of a fit: what layers and KV heads lose when one of them keeps less, and curves that lose least."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from solm.backends.logits import LOGITS_AT_ONCE
from solm.core.actions import FULL_BITS
from solm.core.cost import equal_mlp, site_parts
from solm.core.files import Parts, resumable, write_json
from solm.core.sparsity import Allocation
from solm.fit.folder import ALLOCATION
from solm.fit.job import Job
from solm.fit.texts import draw_halves
from solm.policies.curves import (
    CHECKED,
    HEAD_PROBES,
    PROBED,
    UNIFORM,
    bit_losses,
    greedy_curves,
    priced_curves,
    site_losses,
)
from solm.runtime.calibrate import Probes, alone
from solm.runtime.language_model import LanguageModel


def allocate(job: Job) -> None:
    """What every layer, and where pages are worth it every KV head, keeps of an action."""
    sizes = job.sizes("allocation", job.timings)
    length = sizes.context + sizes.allocation_length
    windows = draw_halves(job.texts.train, sizes.allocation_texts, length, job.generator())
    with resumable(job.folder.path / ALLOCATION) as partial:
        result = find_allocation(
            job.lm.with_policy(None, job.plain), windows, sizes.context, sizes.allocation_axes,
            Parts(partial, job.folder.key), job.progress("allocation"),
        )  # fmt: skip
        write_json(job.folder.path / ALLOCATION, result)


def find_allocation(
    lm: LanguageModel,
    windows: torch.Tensor,
    context: int,
    axes: Sequence[str],
    parts: Parts,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """An allocation measured on the first half of windows [N, context + T] int64 and compared with uniform shares on
    the second, as JSON: ``allocation``, ``costs`` per axis and unit, and ``checked``.

    lm: its `SparsityConfig` has thresholds, and no allocation. context: tokens that are read densely first. axes: of
    `PROBED`, all of `site_axes`; without ``attention`` pages stay uniform. parts: keeps measurements,
    so that an interrupted search goes on. progress: called with measurements done and in all.
    """
    half, plain = len(windows) // 2, lm.sparsity
    assert plain.thresholds is not None
    costs = _unit_costs(lm, windows[:half], context, axes, parts, progress)
    of_sites = {axis: np.array(list(costs[axis].values())) for axis in axes if axis != "attention"}
    lost = site_losses(of_sites, np.array(plain.thresholds.limits))
    of_bits = bit_losses(of_sites, plain.sites) if "input_bits" in axes else None
    curves = priced_curves(lost, site_parts(plain, lm.shapes), of_bits, plain.upper_bits_part)
    attention = [UNIFORM] * (lm.shapes.layers * lm.shapes.kv_heads)
    if "attention" in axes:
        # What the smallest change in a layer costs, because all later layers round differently, is no head's own cost.
        rounding = of_sites["mlp"][:, -1]
        heads = np.array(list(costs["attention"].values()))
        own = heads - rounding[np.array(list(costs["attention"])) // lm.shapes.kv_heads, None]
        for unit, curve in zip(costs["attention"], greedy_curves(own, HEAD_PROBES), strict=True):
            attention[unit] = curve
    allocation = Allocation(attention=tuple(attention), **curves)
    checked = _check(lm, windows[half:], context, allocation, [axis for axis in CHECKED if axis in axes])
    return {"texts": half, "costs": costs, "checked": checked, "allocation": allocation.model_dump()}


def _groups(lm: LanguageModel, windows: torch.Tensor, context: int) -> list[torch.Tensor]:
    """Windows [N, context + T] in groups whose logits, dense ones and others, fit into memory."""
    return list(windows.split(max(1, LOGITS_AT_ONCE // (2 * (windows.shape[1] - context) * lm.shapes.vocabulary))))


def _unit_costs(
    lm: LanguageModel,
    windows: torch.Tensor,
    context: int,
    axes: Sequence[str],
    parts: Parts,
    progress: Callable[[int, int], None],
) -> dict[str, dict[int, list[float]]]:
    """By axis, unit and share of `PROBED`: nats per token that are lost where this unit alone keeps this share. Sliding
    layers read all of their windows, so that they have no units of attention."""
    heads = lm.shapes.kv_heads
    layers = [
        [
            (axis, share, unit)
            for axis in axes
            for unit in (range(layer * heads, (layer + 1) * heads) if axis == "attention" else (layer,))
            if axis != "attention" or layer not in lm.backend.capability.sliding
            for share in PROBED[axis]
        ]
        for layer in range(lm.shapes.layers)
    ]
    groups = _groups(lm, windows, context)
    total, done = len(groups) * sum(map(len, layers)), 0
    costs: dict[str, dict[int, list[float]]] = {axis: {} for axis in axes}

    def measure(texts: Probes, probes: list[tuple[str, float, int]], done: int) -> list[float]:
        lost = []
        for axis, share, unit in probes:
            rules = alone(lm.sparsity, lm.shapes, axis, [unit], share)
            lost.append(float(texts.losses(rules, _action(axis, 0.5)).sum()) / len(windows))
            progress(done + len(lost), total)
        return lost

    for number, some in enumerate(groups):
        texts = Probes(lm, some.numpy(), context)
        for layer, probes in enumerate(layers):
            make = functools.partial(measure, texts, probes, done)
            lost = parts.get(f"group {number} layer {layer}", make)
            done += len(probes)
            for (axis, share, unit), nats in zip(probes, lost, strict=True):
                of_unit = costs[axis].setdefault(unit, [0.0] * len(PROBED[axis]))
                of_unit[PROBED[axis].index(share)] += nats
    progress(total, total)
    return costs


def _action(axis: str, keep: float) -> tuple[float, float, float]:
    return (keep, 1.0, FULL_BITS) if axis == "attention" else (1.0, keep, FULL_BITS)


def _check(
    lm: LanguageModel, windows: torch.Tensor, context: int, allocation: Allocation, axes: list[str]
) -> list[dict[str, Any]]:
    """KL on texts that the allocation was not found on, with uniform shares and with the allocation, nats per token, at
    the same realised share."""
    allocated, lost = lm.sparsity.under(allocation), dict[tuple[str, float], list[list[np.ndarray]]]()
    arms = [(axis, keep) for axis in axes for keep in CHECKED[axis]]
    for some in _groups(lm, windows, context):
        texts = Probes(lm, some.numpy(), context)
        for axis, keep in arms:
            alike = equal_mlp(keep, allocated, lm.sparsity, lm.shapes) if axis == "mlp" else keep
            pair = [texts.losses(how, _action(axis, at)) for how, at in ((lm.sparsity, alike), (allocated, keep))]
            lost.setdefault((axis, keep), []).append(pair)
    rows = []
    for (axis, keep), pairs in lost.items():
        even, ours = map(np.concatenate, zip(*pairs, strict=True))
        error = float((ours - even).std(ddof=1) / len(even) ** 0.5) if len(even) > 1 else 0.0
        rows.append({"axis": axis, "keep": keep, "even": float(even.mean()), "allocation": float(ours.mean()),
                     "standard_error_of_difference": error})  # fmt: skip
    return rows
