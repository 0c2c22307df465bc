"""What profiles are worth: constant actions dealt out evenly and by each of them, on held-out text.

    solm allocation --data TRAIN --texts 32 --seed 31 --out heads.json
    python benchmarks/layers.py --data DATA --profiles layers.json heads.json

Every action keeps the same share in every way, but for the rounding of pages in every layer; what was read is told
beside what was lost. Text is Wikipedia, books and the web (see policies.py); then answers to retrieval questions,
whole, as lm-eval would score them. Differences, of every allocation from an even deal and of the last from the first, are
paired over texts or questions, with 95 % intervals.
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
from solm.backends.passes import log_probabilities
from solm.backends.torch.session import Session
from solm.core.allocation import Allocation
from solm.core.files import write_text
from solm.core.sparsity import SparsityConfig
from solm.evaluation.local_tasks import load_tasks
from solm.evaluation.perplexity import EvaluationSettings, held_out_windows
from solm.evaluation.result import command_line, environment
from solm.evaluation.statistics import paired_difference
from solm.runtime.language_model import LanguageModel
from solm.runtime.load import load
from solm.training.allocate import read_allocation

ACTIONS = ((0.1, 1.0), (0.2, 1.0), (0.4, 1.0), (1.0, 0.5), (1.0, 0.6), (1.0, 0.7), (1.0, 0.8), (0.2, 0.6), (0.4, 0.7))
RETRIEVED = ((0.1, 1.0), (0.2, 1.0), (0.4, 1.0))
EVENLY = "evenly"
LENGTH, BATCH = 128, 8
Ways = dict[str, Allocation | None]
Arms = dict[str, list[tuple[float, ...]]]
"""Per arm, and per text: nats, and the shares of attention and MLP."""


def take(
    arms: Arms,
    ways: Ways,
    session: Session,
    tokens: torch.Tensor,
    actions: tuple[tuple[float, float], ...],
    whole: bool,
) -> None:
    """Score what follows in the rows of `session` densely and under every action, dealt out in every way."""
    for attention, mlp in ((1.0, 1.0), *actions):
        for way, allocation in ways.items():
            if way == EVENLY or attention * mlp < 1:
                rows = session.fork(1, capacity=tokens.shape[1] + session.sparsity.page_size)
                rows.sparsity = rows.sparsity.under(allocation)
                arms[f"{way} {attention} {mlp}"] += score(rows, tokens, attention, mlp, whole)


def score(rows: Session, tokens: torch.Tensor, attention: float, mlp: float, whole: bool) -> list[tuple[float, ...]]:
    keep = torch.tensor([attention, mlp, 16], dtype=torch.float64)
    found = rows.extend(tokens[:, :-1], keep.expand(len(tokens), tokens.shape[1] - 1, 3))
    nats = -log_probabilities(found.logits, tokens[:, 1:]).double()
    shares = found.realised.mean(1)[:, :2]
    total = nats.sum(1) if whole else nats.mean(1)
    return [(float(n), *map(float, share)) for n, share in zip(total, shares, strict=True)]


def text(lm: LanguageModel, data: Path, ways: Ways, context: int, count: int) -> Arms:
    arms: Arms = defaultdict(list)
    settings = EvaluationSettings(budgets=(1.0,), texts=count, context=context, length=LENGTH)
    for some in held_out_windows(held_out(data, lm), settings).split(max(1, BATCH * 512 // context)):
        session = lm.session(capacity=context)
        session.prefill(some[:, :context])
        take(arms, ways, session, some[:, context:], ACTIONS, whole=False)
        print(f"context {context}: {len(arms[f'{EVENLY} 1.0 1.0'])} of {count} texts", flush=True)
    return arms


def answers(lm: LanguageModel, data: Path, ways: Ways, name: str, count: int) -> Arms:
    arms: Arms = defaultdict(list)
    (task,) = load_tasks([name], data)[name].values()
    assert lm.tokenizer is not None
    for document in list(task.eval_docs)[:count]:
        context, answer = task.doc_to_text(document), task.doc_to_target(document)
        begun = len(lm.tokenizer(context).input_ids) - 1
        ids = torch.tensor([lm.tokenizer(context + answer).input_ids])
        session = lm.session(capacity=ids.shape[1])
        session.prefill(ids[:, :begun])
        take(arms, ways, session, ids[:, begun:], RETRIEVED, whole=True)
    print(f"{name}: {count} questions", flush=True)
    return arms


def summary(arms: Arms, ways: Ways) -> list[dict[str, Any]]:
    rows = []
    dense = np.array(arms[f"{EVENLY} 1.0 1.0"])[:, 0]
    first, last = list(ways)[1], list(ways)[-1]
    pairs = [(way, EVENLY) for way in ways if way != EVENLY] + ([(last, first)] if last != first else [])
    for action in [name.removeprefix(f"{first} ") for name in arms if name.startswith(f"{first} ")]:
        taken = {way: np.array(arms[f"{way} {action}"]) for way in ways}
        attention, mlp = map(float, action.split())
        row: dict[str, Any] = {"attention": attention, "mlp": mlp, "nats_dense": float(dense.mean())}
        for way, found in taken.items():
            row[way] = {"loss": float((found[:, 0] - dense).mean()), "realised": found[:, 1:].mean(0).tolist()}
        for way, other in pairs:
            row[f"{way}_minus_{other}"] = paired_difference(taken[way][:, 0], taken[other][:, 0])._asdict()
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--profiles", type=Path, nargs="+", required=True, help="Files of `solm allocation`.")
    parser.add_argument("--sparsity", default="cpu")
    parser.add_argument("--contexts", default="512,1024,4096")
    parser.add_argument("--texts", default="96,48,12", help="Texts at every context.")
    parser.add_argument("--questions", type=int, default=12, help="Of every retrieval set.")
    parser.add_argument("--out", type=Path, default=Path("docs/results/layers.json"))
    options = parser.parse_args()
    lm = load("builtin:smollm2-135m", sparsity=SparsityConfig.preset(options.sparsity))
    ways: Ways = {EVENLY: None} | {path.stem: read_allocation(path) for path in options.profiles}
    sizes = zip(options.contexts.split(","), options.texts.split(","), strict=True)
    found = {
        "text": {
            context: summary(text(lm, options.data, ways, int(context), int(count)), ways) for context, count in sizes
        },
        "retrieval": {
            name: summary(answers(lm, options.data / "eval", ways, name, options.questions), ways) for name in SETS
        },
        "searched": {path.stem: json.loads(path.read_text()) for path in options.profiles},
    }
    about = {"command": command_line(), "environment": environment(), "sparsity": options.sparsity}
    write_text(options.out, json.dumps({**about, **found}, indent=1) + "\n")
    for where, rows in [*found["text"].items(), *found["retrieval"].items()]:
        for row in rows:
            print(
                f"{where:>16} attention {row['attention']:.1f} MLP {row['mlp']:.1f}: "
                + ", ".join(f"{way} {row[way]['loss']:+.3f} ({row[way]['realised'][0]:.3f})" for way in ways)
                + "".join(
                    f", {name.replace('_', ' ')} {found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
                    for name, found in row.items()
                    if "_minus_" in name
                )
            )


if __name__ == "__main__":
    main()
