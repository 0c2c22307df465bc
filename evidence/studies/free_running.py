"""Free-running quality: text generated under a budget, judged by the dense model, policy against its baselines.

Prompts are the first tokens of held-out windows. Every arm samples at temperature 1 with the same random numbers; the
baselines get, text by text, the shares that the policy realised, which take equal milliseconds by its step times. Along
the generated text: log-probability under the dense model, and KL of the arm's distribution from the dense model's. All
arms and the dense model run on one backend with the same weights.

    python evidence/studies/free_running.py --model qwen.gguf --data wiki.txt --budgets 0.9,0.8 --out free-running.json
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from evidence.record import Record, record
from evidence.studies.common import ComparedOptions, TextOptions, budget_at, kept, main, progress
from solm.core.actions import AXES
from solm.core.arrays import as_tensor
from solm.core.budget import Ledger
from solm.evaluation.arms import Arm
from solm.evaluation.result import paired_difference
from solm.runtime.batch import Row, decode
from solm.runtime.language_model import LanguageModel
from solm.runtime.sampling import Sampler

_ROWS = 8
"""Texts that are generated at once, whose logits are in memory together."""
_DRAWN = {
    "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "eos_token_id": None,
}  # fmt: skip
"""Draws from the model's whole distribution, which nothing ends."""


class Options(ComparedOptions, TextOptions):
    texts: int = Field(100, ge=2, description="Number of prompts.")
    context: int = Field(256, ge=1, description="Tokens of a prompt.")
    length: int = Field(256, ge=1, description="Tokens that are generated.")


def measure(lm: LanguageModel, options: Options, partial: Path | None) -> Record:
    """Results: `currency`, what budgets are; `points`, by budget and arm the mean log-probability under the dense model
    (`score`), KL, realised shares and, where step times are known, milliseconds per step, and policy minus each
    baseline with 95 % intervals over prompts."""
    offer, seen = lm.budgets(), options.context + options.length // 2
    budgets = options.values(offer, seen)
    windows, fingerprints = options.windows(lm)
    prompts = windows[:, : options.context]
    settings = options.model_dump(mode="json") | {
        "model": lm.name, "backend": lm.backend.name, "budgets": budgets, "data_fingerprint": fingerprints,
    }  # fmt: skip
    parts, baselines = kept(partial, lm, settings), options.arms(lm)
    arms = {"dense": Arm(lm.policy("dense")), "policy": Arm(lm.policy("policy")), **baselines}
    points = []
    for place, share in enumerate(budgets):
        target = torch.tensor(budget_at(offer, share, seen).shares).repeat(len(prompts), 1)
        rows: dict[str, dict[str, np.ndarray]] = {}
        for step, (name, arm) in enumerate(arms.items()):
            progress(f"{name} at {share:g}", place * len(arms) + step, len(arms) * len(budgets))
            found: dict[str, list[Any]] = {"score": [], "kl": [], "realised": []}
            for seed, (some, goal) in enumerate(zip(prompts.split(_ROWS), target.split(_ROWS), strict=True)):
                made = parts.get(
                    f"{name} {seed}" if name == "dense" else f"{share} {name} {seed}",
                    lambda some=some, goal=goal, seed=seed, arm=arm: generated(  # type: ignore[misc]
                        lm, some, arm, goal, options.length, options.seed * 1000 + seed
                    ),
                )
                for what, values in found.items():
                    values += made[what]
            rows[name] = {what: np.array(values) for what, values in found.items()}
            if name == "policy":
                target = torch.from_numpy(rows[name]["realised"])
        point: dict[str, Any] = {"budget": share, "arms": {}}
        for name, told in rows.items():
            means = {what: float(told[what].mean()) for what in ("score", "kl")}
            if offer.timings is not None:
                means["ms"] = float(offer.timings.milliseconds(told["realised"], seen).mean())
            point["arms"][name] = means | dict(zip(AXES, told["realised"].mean(0).tolist(), strict=True))
        for name in baselines:
            for what in ("score", "kl"):
                gain = paired_difference(rows["policy"][what], rows[name][what])
                point[f"policy_minus_{name}_{what}"] = gain.model_dump()
        points.append(point)
    return record("free-running", settings, {"currency": "keep" if lm.timings is None else "time", "points": points})


def generated(
    lm: LanguageModel, prompts: torch.Tensor, arm: Arm, target: torch.Tensor, length: int, seed: int
) -> dict[str, list[Any]]:
    """Per prompt: mean log-probability under the dense model, mean KL, realised shares [N, axes]."""
    rows = []
    for place, (ids, shares) in enumerate(zip(prompts[:, None].numpy(), target.tolist(), strict=True)):
        rows.append(Row(ids[0], arm.policy, shares, length, Sampler.of(lm, ids, seed + place, _DRAWN)))
        rows[-1].session = lm.session(ids.shape[1] + length, arm.sparsity)
    logits: dict[int, list[torch.Tensor]] = {id(row): [] for row in rows}
    for row in decode(lm, rows, len(rows)):
        logits[id(row)].append(as_tensor(row.possible).float().cpu().clone())
    found: dict[str, list[Any]] = {"score": [], "kl": [], "realised": []}
    for ids, row in zip(prompts[:, None], rows, strict=True):
        dense, written = lm.session(capacity=ids.shape[1] + length), torch.tensor([row.ids])
        first = dense.prefill(ids)[:, None]
        scored = dense.score(written, keep_logits=True)
        assert scored.logits is not None
        theirs = torch.cat([first, scored.logits], 1)[0].float().cpu().log_softmax(-1)
        ours = torch.stack(logits.pop(id(row))).log_softmax(-1)
        found["score"].append(float(theirs.gather(1, written[0, :, None]).mean()))
        found["kl"].append(float((theirs.exp() * (theirs - ours)).sum(-1).mean()))
        realised, counted = np.array(row.trace.realised), np.array(row.trace.controllable)
        found["realised"].append(Ledger((realised * counted).sum(0), counted.sum(0)).average.tolist())
    return found


def lines(found: Record) -> list[str]:
    unit = "of the time" if found.results["currency"] == "time" else "net keep"
    return [
        f"{point['budget']:g} {unit}, {name}: log-probability {arm['score']:+.4f}, KL {arm['kl']:.4f} nats per token"
        + (f", {arm['ms']:.1f} ms" if "ms" in arm else "")
        for point in found.results["points"]
        for name, arm in point["arms"].items()
    ]


if __name__ == "__main__":
    main(Options, lambda options, partial: measure(options.load(), options, partial), lines, __doc__)
