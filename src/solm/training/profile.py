"""Finding a profile: what every layer loses by keeping less, and how a share is dealt out so that they lose least."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from solm.decoding.language_model import LanguageModel
from solm.decoding.passes import divergences
from solm.decoding.session import Session
from solm.errors import DamagedFileError, DataError
from solm.files import write_text
from solm.policies.artifact import BUILTIN, TrainedPolicy
from solm.profile import KNOTS, Profile
from solm.provenance import command_line, environment
from solm.semantics import Semantics

SHARES = {"attention": (0.02, 0.12, 0.3), "mlp": (0.5, 0.7)}
"""What a layer keeps, alone among dense ones, while it is measured: of the pages that may be skipped, of channels."""
CHECKED = {"attention": (0.1, 0.2, 0.4), "mlp": (0.5, 0.6, 0.7, 0.8)}
"""Keep rates at which the profile is compared with an even deal, on other texts."""
_STEP = 0.01
_LEAST, _FLATTEST = 1e-5, -0.5  # nats, and nats' logarithm per share: what noise may not undercut


def find_profile(
    lm: LanguageModel,
    windows: torch.Tensor,
    context: int,
    out: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Measure on the first half of windows [N, context + T], find the profile, compare it on the second half.

    The result is written to `out`, and what is measured to a file beside it, from which an interrupted run goes on.
    Raises `DataError` for fewer than two windows and for a context in which no step can be controlled, `SolmError` for
    semantics that have no profile.
    """
    if len(windows) < 2:
        raise DataError(f"a profile needs at least 2 texts, got {len(windows)}")
    if context < lm.semantics.always_read:
        raise DataError(
            f"context must be at least {lm.semantics.always_read} tokens, which are read always, got {context}"
        )
    half, layers = len(windows) // 2, lm.control.shapes.layers
    plain = lm.semantics.under(None)
    plain.under(_probe("mlp", 1.0, 0, layers))  # refused now rather than after the measurements
    kept = out.with_name(out.name + ".partial")
    key = hashlib.sha256(
        f"{lm.identity.model_dump_json()} {plain.model_dump_json()} {context}".encode() + windows.numpy().tobytes()
    ).hexdigest()
    found = _measured(kept, key)
    own = _differing(lm)
    total = sum(len(own[axis]) * len(shares) for axis, shares in SHARES.items()) + 1
    measured = _Texts(lm, windows[:half], context)
    costs: dict[str, dict[int, list[float]]] = {axis: {} for axis in SHARES}
    for axis, shares in SHARES.items():
        for layer in own[axis]:
            for share in shares:
                name = f"{axis} {share} {layer}"
                if name not in found:
                    semantics = plain.under(_probe(axis, share, layer, layers))
                    found[name] = float(measured.divergence(semantics, axis, 0.5).mean())
                    write_text(kept, json.dumps({"key": key, "found": found}))
                costs[axis].setdefault(layer, []).append(found[name])
                progress(len(found), total)
    # Whatever changes in a layer rounds all that follows anew, which costs something even where the change is nothing.
    noise = min(found.values(), default=0.0)
    profile = Profile(**{axis: _curves(costs[axis], noise, shares, layers) for axis, shares in SHARES.items()})
    told = {
        "kind": "profile", "command": command_line(), "environment": environment(), "model": lm.identity.model_dump(),
        "texts": half, "context": context, "tokens": windows.shape[1] - context,
        "costs": costs,
        "checked": _check(_Texts(lm, windows[half:], context), plain, profile), "profile": profile.model_dump(),
    }  # fmt: skip
    write_text(out, json.dumps(told) + "\n")
    kept.unlink(missing_ok=True)
    progress(total, total)
    return told


def read_profile(source: str | Path) -> Profile:
    """The profile in a file of `find_profile`, or the one that a policy carries: a folder or one that ships with solm.

    Raises `DataError` without a file or for a policy without a profile, `DamagedFileError` for another file.
    """
    path = Path(source)
    if str(source).startswith(BUILTIN) or path.is_dir():
        carried = TrainedPolicy.from_pretrained(source).config.semantics.profile
        if carried is None:
            raise DataError(f"the policy {source} carries no profile")
        return carried
    try:
        return Profile.model_validate(json.loads(path.read_text())["profile"])
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        reason = "it has no key 'profile'" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise DamagedFileError(f"{path} does not hold a profile: {reason}") from error


def deal(costs: np.ndarray, shares: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """Curves of a profile from costs [layers, shares]: what every layer loses, in nats, where it alone keeps a share.

    The logarithm of a layer's cost is taken to fall linearly with its share, and layers' costs to add up. Each
    hundredth goes to the layer that gains most by it, so curves rise and every point spends exactly its average.
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


def _differing(lm: LanguageModel) -> dict[str, list[int]]:
    """Per axis the layers that an action changes, between which there is something to deal out."""
    cache, axes = lm.session().cache, lm.control.capability.axes
    full = [index for index, layer in enumerate(cache.layers) if not layer.is_sliding]
    return {"attention": full, "mlp": list(range(lm.control.shapes.layers)) if axes["mlp"] else []}


def _curves(
    costs: dict[int, list[float]], noise: float, shares: tuple[float, ...], layers: int
) -> tuple[tuple[float, ...], ...]:
    """Curves of all layers: those with costs as they are dealt out, the others evenly."""
    curves = [tuple(knot / (KNOTS - 1) for knot in range(KNOTS))] * layers
    if costs:
        for layer, curve in zip(costs, deal(np.array(list(costs.values())) - noise, shares), strict=True):
            curves[layer] = curve
    return tuple(curves)


class _Texts:
    """Texts that were read densely up to `context`, and what the dense model says after every token of the rest."""

    def __init__(self, lm: LanguageModel, windows: torch.Tensor, context: int):
        self.tokens = windows[:, context:]
        self.parent = Session(lm.control, lm.semantics, context)
        self.parent.prefill(windows[:, :context])
        self.dense = self.parent.fork(1, self.tokens.shape[1]).extend(self.tokens).logits

    def divergence(self, semantics: Semantics, axis: str, keep: float) -> np.ndarray:
        """KL from the dense predictions where every step keeps `keep` of one axis: mean of every text [N]."""
        rows = self.parent.fork(1, self.tokens.shape[1])
        rows.semantics = semantics
        action = torch.tensor([keep if axis == name else 1.0 for name in SHARES] + [16.0], dtype=torch.float64)
        logits = rows.extend(self.tokens, action.expand(*self.tokens.shape, 3)).logits
        found = divergences(logits.flatten(0, 1)[:, None], self.dense.flatten(0, 1))
        return found.view(self.tokens.shape).mean(1).double().cpu().numpy()


def _probe(axis: str, share: float, layer: int, layers: int) -> Profile:
    """One layer keeps `share` of `axis` whatever is dealt out, the others everything."""
    whole = (1.0,) * KNOTS
    curves = [(share,) * (KNOTS - 1) + (1.0,) if number == layer else whole for number in range(layers)]
    full = (whole,) * layers
    return Profile(
        attention=tuple(curves) if axis == "attention" else full, mlp=tuple(curves) if axis == "mlp" else full
    )


def _check(texts: _Texts, plain: Semantics, profile: Profile) -> list[dict[str, Any]]:
    """KL on texts that the profile was not found on, dealt out evenly and by the profile, in nats per token."""
    dealt, rows = plain.under(profile), []
    for axis, keeps in CHECKED.items():
        for keep in keeps:
            even, ours = (texts.divergence(semantics, axis, keep) for semantics in (plain, dealt))
            error = float((ours - even).std(ddof=1) / len(even) ** 0.5) if len(even) > 1 else 0.0
            rows.append({"axis": axis, "keep": keep, "even": float(even.mean()), "profile": float(ours.mean()),
                         "standard_error_of_difference": error})  # fmt: skip
    return rows
