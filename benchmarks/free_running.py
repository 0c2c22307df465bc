"""Free-running quality: text generated under a budget, judged by the dense model, policy against static.

    python benchmarks/free_running.py --data DATA

Prompts are the first tokens of held-out windows (see policies.py). Every arm samples at temperature 1 with the same
random numbers; static gets, row by row, what the policy realised. Along the generated text: log-probability under the
dense model, and KL of the dense model's distribution from the arm's. All arms and the dense model run on one backend
with the same weights. What an interrupted run has finished lies beside the result, and the next one goes on from it.
"""

import argparse
import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import torch

from policies import held_out
from solm.core.actions import AXES
from solm.core.files import write_text
from solm.evaluation.perplexity import EvaluationSettings, held_out_windows
from solm.evaluation.result import command_line, environment
from solm.evaluation.statistics import paired_difference
from solm.runtime.drive import drive
from solm.runtime.language_model import LanguageModel
from solm.runtime.load import load

PROMPT, CHUNK, ROWS = 256, 16, 50
SPACE = "fine"
EVEN = "uniform"
"""Static without the policy's allocation: every layer keeps the same."""


@torch.no_grad()
def generated(
    lm: LanguageModel, prompts: torch.Tensor, name: str, target: torch.Tensor, length: int, seed: int
) -> dict[str, torch.Tensor]:
    """Per prompt: mean log-probability under the dense model, mean KL, realised shares [N, 3]."""
    parent = lm.session(capacity=PROMPT)
    logits = parent.prefill(prompts)
    session, dense = (parent.fork(1, capacity=length + CHUNK) for _ in range(2))
    if name == EVEN:
        session.sparsity = session.sparsity.under(None)
    driver = drive(session, lm.policy(name.removesuffix("-even")), target, length)
    generator = torch.Generator().manual_seed(seed)
    scores, distances = [], []
    before = logits[:, None]
    for _ in range(length // CHUNK):
        tokens, seen = [], []
        for _ in range(CHUNK):
            noise = -torch.empty(logits.shape).exponential_(generator=generator).log()
            tokens.append((logits.float() + noise).argmax(-1))
            seen.append(logits)
            logits, _ = driver.step(tokens[-1])
        known, ours = torch.stack(tokens, 1), torch.stack(seen, 1)
        after = dense.extend(known).logits
        theirs = torch.cat([before, after[:, :-1]], 1)
        before = after[:, -1:]
        for step in range(CHUNK):
            reference = theirs[:, step].float().log_softmax(-1)
            distances.append((reference.exp() * (reference - ours[:, step].float().log_softmax(-1))).sum(-1))
            scores.append(reference.gather(1, known[:, step, None])[:, 0])
    spent = session.ledger.average
    return {"score": torch.stack(scores, 1).mean(1), "kl": torch.stack(distances, 1).mean(1), "realised": spent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--policy", default=f"builtin:smollm2-135m-{SPACE}")
    parser.add_argument("--budgets", default="0.45,0.6")
    parser.add_argument("--backend", default="cpu", help="native (int8), or reference")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("docs/results/free-running.json"))
    options = parser.parse_args()
    precision = "int8" if options.backend == "cpu" else None
    lm = load("builtin:smollm2-135m", options.policy, backend=options.backend, precision=precision)
    settings = EvaluationSettings(budgets=(1.0,), texts=options.prompts, context=PROMPT, length=options.length)
    prompts = held_out_windows(held_out(options.data, lm), settings)[:, :PROMPT]
    kept, key, finished = options.out.with_suffix(".partial"), told_apart(lm, prompts, options), {}
    if kept.exists() and (known := json.loads(kept.read_text()))["key"] == key:
        finished = known["parts"]
    points = []
    for net in (float(part) for part in options.budgets.split(",")):
        target = lm.budget(net).tensor(len(prompts))
        rows: dict[str, dict[str, torch.Tensor]] = {}
        for arm in ("dense", "policy", "static", EVEN):
            parts = []
            for seed, (some, goal) in enumerate(zip(prompts.split(ROWS), target.split(ROWS), strict=True)):
                name = f"{arm} {seed}" if arm == "dense" else f"{net} {arm} {seed}"
                if name not in finished:
                    made = generated(lm, some, arm, goal, options.length, seed)
                    finished[name] = {what: value.tolist() for what, value in made.items()}
                    write_text(kept, json.dumps({"key": key, "parts": finished}))
                parts.append(finished[name])
            rows[arm] = {
                what: torch.tensor([row for part in parts for row in part[what]], dtype=torch.float64)
                for what in parts[0]
            }
            if arm == "policy":
                target = rows[arm]["realised"]
            print(net, arm, {what: value.mean(0).tolist() for what, value in rows[arm].items()}, flush=True)
        point = {"budget": net, "prompts": len(prompts), "tokens": len(prompts) * options.length, "arms": {}}
        for arm, found in rows.items():
            shares = dict(zip(AXES, found["realised"].mean(0).tolist(), strict=True))
            point["arms"][arm] = {"score": float(found["score"].mean()), "kl": float(found["kl"].mean()), **shares}
        for arm, what in itertools.product(("static", EVEN), ("score", "kl")):
            both = [np.asarray(rows[name][what]) for name in ("policy", arm)]
            point[f"policy_minus_{arm}_{what}"] = paired_difference(*both)._asdict()
        print({name: value for name, value in point.items() if name.startswith("policy_minus")}, flush=True)
        points.append(point)
    told = {
        "command": command_line(),
        "environment": environment(),
        "space": SPACE,
        "backend": options.backend,
        "points": points,
    }
    write_text(options.out, json.dumps(told, indent=2) + "\n")
    kept.unlink(missing_ok=True)


def told_apart(lm: LanguageModel, prompts: torch.Tensor, options: argparse.Namespace) -> str:
    """What a file of finished parts must agree in to be gone on with."""
    assert lm.trained is not None
    policy = (lm.trained.config.weights_sha256, lm.trained.config.network.model_dump_json())
    parts = (*policy, lm.sparsity.model_dump_json(), options.backend, options.length)
    return hashlib.sha256(repr(parts).encode() + prompts.numpy().tobytes()).hexdigest()


if __name__ == "__main__":
    main()
