"""What a profile is worth: constant actions dealt out to the layers evenly and by it, on held-out text.

    solm profile --data TRAIN --texts 32 --seed 31 --out layers.json
    python benchmarks/layers.py --data DATA --profile layers.json

Every action keeps the same share either way, but for the rounding of pages in every layer; what was read is told beside
what was lost. Text is Wikipedia, books and the web (see policies.py); then answers to retrieval questions, whole, as
lm-eval would score them. Differences are paired over texts or questions, with 95 % intervals.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from long_context import SETS
from policies import held_out
from solm.decoding.api import load
from solm.decoding.language_model import LanguageModel
from solm.decoding.passes import log_probabilities
from solm.decoding.session import Session
from solm.evaluation.local_tasks import load_tasks
from solm.evaluation.perplexity import EvaluationSettings, held_out_windows
from solm.evaluation.result import command_line, environment
from solm.evaluation.statistics import paired_difference
from solm.files import write_text
from solm.semantics import Semantics
from solm.training.profile import read_profile

ACTIONS = ((0.1, 1.0), (0.2, 1.0), (0.4, 1.0), (1.0, 0.5), (1.0, 0.6), (1.0, 0.7), (1.0, 0.8), (0.2, 0.6), (0.4, 0.7))
RETRIEVED = ((0.1, 1.0), (0.2, 1.0), (0.4, 1.0))
WAYS = ("evenly", "profile")
LENGTH, BATCH = 128, 8
Arms = dict[str, list[tuple[float, float, float]]]
"""Per arm, and per text: nats, and the shares of attention and MLP."""


def take(
    arms: Arms, session: Session, tokens: torch.Tensor, actions: tuple[tuple[float, float], ...], whole: bool
) -> None:
    """Score what follows in the rows of `session` densely and under every action, dealt out both ways."""
    for attention, mlp in ((1.0, 1.0), *actions):
        for way in WAYS:
            score(arms, f"{way} {attention} {mlp}", session, tokens, whole)


def score(arms: Arms, name: str, session: Session, tokens: torch.Tensor, whole: bool) -> None:
    way, attention, mlp = name.split()
    rows = session.fork(1, capacity=tokens.shape[1] + session.semantics.page_size)
    if way == "evenly":
        rows.semantics = rows.semantics.under(None)
    keep = torch.tensor([float(attention), float(mlp), 16], dtype=torch.float64)
    found = rows.extend(tokens[:, :-1], keep.expand(len(tokens), tokens.shape[1] - 1, 3))
    nats = -log_probabilities(found.logits, tokens[:, 1:]).double()
    shares = found.realised.mean(1)[:, :2]
    total = nats.sum(1) if whole else nats.mean(1)
    arms[name] += [(float(n), *map(float, share)) for n, share in zip(total, shares, strict=True)]


def text(lm: LanguageModel, data: Path, context: int, count: int) -> Arms:
    arms: Arms = defaultdict(list)
    settings = EvaluationSettings(budgets=(1.0,), sequences=count, context=context, length=LENGTH)
    for some in held_out_windows(held_out(data, lm), settings).split(max(1, BATCH * 512 // context)):
        session = lm.session(capacity=context)
        session.prefill(some[:, :context])
        take(arms, session, some[:, context:], ACTIONS, whole=False)
        print(f"context {context}: {len(arms['evenly 1.0 1.0'])} of {count} texts", flush=True)
    return arms


def answers(lm: LanguageModel, data: Path, name: str, count: int) -> Arms:
    arms: Arms = defaultdict(list)
    (task,) = load_tasks([name], data)[name].values()
    assert lm.tokenizer is not None
    for document in list(task.eval_docs)[:count]:
        context, answer = task.doc_to_text(document), task.doc_to_target(document)
        begun = len(lm.tokenizer(context).input_ids) - 1
        ids = torch.tensor([lm.tokenizer(context + answer).input_ids])
        session = lm.session(capacity=ids.shape[1])
        session.prefill(ids[:, :begun])
        take(arms, session, ids[:, begun:], RETRIEVED, whole=True)
    print(f"{name}: {count} questions", flush=True)
    return arms


def summary(arms: Arms) -> list[dict[str, Any]]:
    rows = []
    dense = np.array(arms["evenly 1.0 1.0"])[:, 0]
    for action in [name.removeprefix("evenly ") for name in arms if name.startswith("evenly")]:
        even, dealt = (np.array(arms[f"{way} {action}"]) for way in WAYS)
        attention, mlp = map(float, action.split())
        row: dict[str, Any] = {"attention": attention, "mlp": mlp, "nats_dense": float(dense.mean())}
        for way, found in zip(WAYS, (even, dealt), strict=True):
            row[way] = {"loss": float((found[:, 0] - dense).mean()), "realised": found[:, 1:].mean(0).tolist()}
        row["profile_minus_evenly"] = paired_difference(dealt[:, 0], even[:, 0])._asdict()
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--semantics", default="native")
    parser.add_argument("--contexts", default="512,1024,4096")
    parser.add_argument("--texts", default="96,48,12", help="Texts at every context.")
    parser.add_argument("--questions", type=int, default=12, help="Of every retrieval set.")
    parser.add_argument("--out", type=Path, default=Path("docs/results/layers.json"))
    options = parser.parse_args()
    semantics = Semantics.preset(options.semantics).under(read_profile(options.profile))
    lm = load("builtin:smollm2-135m", semantics=semantics)
    sizes = zip(options.contexts.split(","), options.texts.split(","), strict=True)
    found = {
        "text": {context: summary(text(lm, options.data, int(context), int(count))) for context, count in sizes},
        "retrieval": {name: summary(answers(lm, options.data / "eval", name, options.questions)) for name in SETS},
        "searched": json.loads(options.profile.read_text()),
    }
    about = {"command": command_line(), "environment": environment(), "semantics": options.semantics}
    write_text(options.out, json.dumps({**about, **found}, indent=1) + "\n")
    for where, rows in [*found["text"].items(), *found["retrieval"].items()]:
        for row in rows:
            print(
                f"{where:>16} attention {row['attention']:.1f} MLP {row['mlp']:.1f}: "
                + ", ".join(f"{way} {row[way]['loss']:+.3f} ({row[way]['realised'][0]:.3f})" for way in WAYS)
                + ", difference {value:+.3f} [{low:+.3f}, {high:+.3f}]".format(**row["profile_minus_evenly"])
            )


if __name__ == "__main__":
    main()
