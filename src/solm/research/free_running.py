"""Free-running quality: text generated under a budget, judged by the dense model, policy against its baselines.

Prompts are the first tokens of held-out windows. Every arm samples at temperature 1 with the same random numbers; the
baselines get, text by text, what the policy realised. Along the generated text: log-probability under the dense model,
and KL of the dense model's distribution from the arm's. All arms and the dense model run on one backend with the same
weights.

Example: solm study free-running --data wiki.txt,books.jsonl --texts 200 --backend cpu --out free-running.json
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from solm.backends.logits import divergences, log_probabilities
from solm.core.actions import AXES
from solm.core.parts import Parts
from solm.evaluation.arms import Arm, static_arms
from solm.evaluation.pictures import Kind, blank, picture
from solm.evaluation.result import Record, record
from solm.evaluation.statistics import paired_difference
from solm.research.studies import Numbers, Progress, StudyOptions
from solm.research.texts import windows_of
from solm.runtime.language_model import LanguageModel

_CHUNK, _ROWS = 16, 50
"""Tokens between two passes of the dense model, and texts that are generated at once."""


class Options(StudyOptions):
    policy: str = Field("builtin:smollm2-135m-fine", description="Folder or hub id of a trained policy.")
    budgets: Numbers = Field((0.45, 0.6), description="Budgets, as net keeps.")
    backend: str = Field("cpu", description="torch, or cpu (int8).")
    texts: int = Field(200, ge=2, description="Number of prompts.")
    context: int = Field(256, ge=1, description="Tokens of a prompt.")
    length: int = Field(256, ge=_CHUNK, multiple_of=_CHUNK, description="Tokens that are generated.")


def run(options: Options, partial: Path | None, progress: Progress) -> Record:
    precision, cache = ("int8", "auto") if options.backend == "cpu" else (None, None)
    lm = options.load(options.policy, backend=options.backend, precision=precision, kv_cache_dtype=cache)
    return measure(lm, options, partial, progress)


def measure(lm: LanguageModel, options: Options, partial: Path | None, progress: Progress) -> Record:
    """Results: `points`, by budget and arm the mean log-probability under the dense model (`score`), KL and realised
    shares, and policy minus each baseline with 95 % intervals over prompts."""
    assert lm.trained is not None
    streams = options.streams(lm)
    prompts = windows_of(streams, options.texts, options.context, options.length, options.seed)[:, : options.context]
    settings = options.model_dump(mode="json") | {"data_fingerprint": [stream.fingerprint for stream in streams]}
    parts = Parts(partial, [settings, lm.trained.config.digest, lm.sparsity.model_dump(mode="json")])
    statics = static_arms(lm, lm.space)
    arms = {"dense": Arm(lm.policy("dense")), "policy": Arm(lm.policy("policy")), **statics}
    points = []
    for place, net in enumerate(options.budgets):
        target = lm.budget(f"keep={net}").tensor(len(prompts))
        rows: dict[str, dict[str, np.ndarray]] = {}
        for step, (name, arm) in enumerate(arms.items()):
            progress(f"{name} at {net:g}", place * len(arms) + step, len(arms) * len(options.budgets))
            found: dict[str, list[Any]] = {"score": [], "kl": [], "realised": []}
            for seed, (some, goal) in enumerate(zip(prompts.split(_ROWS), target.split(_ROWS), strict=True)):
                made = parts.get(
                    f"{name} {seed}" if name == "dense" else f"{net} {name} {seed}",
                    lambda some=some, goal=goal, seed=seed, arm=arm: generated(  # type: ignore[misc]
                        lm, some, arm, goal, options.length, options.seed * 1000 + seed
                    ),
                )
                for what, values in found.items():
                    values += made[what]
            rows[name] = {what: np.array(values) for what, values in found.items()}
            if name == "policy":
                target = torch.from_numpy(rows[name]["realised"])
        point: dict[str, Any] = {"budget": net, "arms": {}}
        for name, told in rows.items():
            shares = dict(zip(AXES, told["realised"].mean(0).tolist(), strict=True))
            point["arms"][name] = {"score": float(told["score"].mean()), "kl": float(told["kl"].mean()), **shares}
        for name in statics:
            for what in ("score", "kl"):
                gain = paired_difference(rows["policy"][what], rows[name][what])
                point[f"policy_minus_{name}_{what}"] = gain._asdict()
        points.append(point)
    return record("free-running", settings, {"points": points})


@torch.no_grad()
def generated(
    lm: LanguageModel, prompts: torch.Tensor, arm: Arm, target: torch.Tensor, length: int, seed: int
) -> dict[str, list[Any]]:
    """Per prompt: mean log-probability under the dense model, mean KL, realised shares [N, 3]."""
    parent = lm.session(capacity=prompts.shape[1])
    logits = parent.prefill(prompts)
    session, dense = (parent.fork(1, length + _CHUNK, sparsity) for sparsity in (arm.sparsity, None))
    session.control(arm.policy, target, length)
    generator = torch.Generator().manual_seed(seed)
    scores, distances = [], []
    before = logits[:, None]
    for _ in range(length // _CHUNK):
        tokens, seen = [], []
        for _ in range(_CHUNK):
            noise = -torch.empty(logits.shape).exponential_(generator=generator).log()
            tokens.append((logits.float().cpu() + noise).argmax(-1))
            seen.append(logits)
            logits = session.step(tokens[-1]).logits[:, 0]
        known, ours = torch.stack(tokens, 1), torch.stack(seen, 1)
        after = dense.extend(known).logits
        theirs = torch.cat([before, after[:, :-1]], 1)
        before = after[:, -1:]
        scores.append(log_probabilities(theirs, known))
        distances.append(divergences(ours.flatten(0, 1)[:, None], theirs.flatten(0, 1)).view(known.shape))
    return {
        "score": torch.cat(scores, 1).mean(1).tolist(), "kl": torch.cat(distances, 1).mean(1).tolist(),
        "realised": session.ledger.average.tolist(),
    }  # fmt: skip


def lines(found: Record) -> list[str]:
    return [
        f"net keep {point['budget']:g}, {name}: log-probability {arm['score']:+.4f}, KL {arm['kl']:.4f} nats per token"
        for point in found.results["points"]
        for name, arm in point["arms"].items()
    ]


def plot(found: Record, kind: Kind) -> bytes:
    """KL from the dense model by budget and arm."""
    figure, axes = blank()
    points = found.results["points"]
    for name in points[0]["arms"]:
        if name != "dense":
            spent = [sum(point["arms"][name][axis] for axis in AXES) / len(AXES) for point in points]
            axes.plot(spent, [point["arms"][name]["kl"] for point in points], "o-", label=name)
    axes.set_xlabel("realised net keep")
    axes.set_ylabel("KL from the dense model, nats per token")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return picture(figure, kind)
