"""The table of the README: one value policy in seven action spaces against every baseline, on held-out text.

    python benchmarks/policies.py --run runs/values --data DATA
    python benchmarks/policies.py --data DATA --oracle mlp-fine,joint-27 --out oracle

Without a run it is the policy that ships, and the token table, which is fitted to a run's samples, is left out.
DATA is a folder with eval/wikitext.valid.tokens.txt, eval/books_long.jsonl, eval/hellaswag_val.jsonl (held out) and
train/ (text that tuned is chosen on). The budgets were fixed before any of the held-out text was scored.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from solm.core.actions import ActionSpace
from solm.core.files import write_text
from solm.data.text import documents
from solm.data.windows import TokenStream, stream_of
from solm.evaluation.baselines import baseline
from solm.evaluation.perplexity import EvaluationSettings, evaluate
from solm.evaluation.show import table, verdict
from solm.policies.artifact import TrainedPolicy
from solm.policies.value_policy import ValueNetwork, ValuePolicy
from solm.runtime.load import load
from solm.training.checkpoint import read_stored
from solm.training.config import ValueTrainConfig
from solm.training.regression import fit
from solm.training.values import read_samples

# Net keeps; in a space with one axis, (share + 2) / 3. Static loses .03 to .5 nats a token at these.
BUDGETS = {
    "attention-fine": (0.735, 0.77),
    "mlp-fine": (0.82, 0.855),
    "bits-fine": (0.76, 0.777),
    "joint-8": (0.48, 0.6),
    "joint-27": (0.45, 0.6),
    "joint-336": (0.45, 0.6),
    "fine": (0.35, 0.4, 0.45, 0.5),
}
# Beside static, tuned, random and the token table. What reads by activations is shown on its own axis; in a fine
# space static is the constant action already.
BASELINES = {"attention-fine": ("constant", "top-p"), "mlp-fine": ("constant", "teal"), "fine": ()}


def held_out(data: Path, lm) -> list[TokenStream]:  # type: ignore[no-untyped-def]
    """Wikipedia, books and the web."""
    web = []
    for line in (data / "eval/hellaswag_val.jsonl").read_text().splitlines():
        item = json.loads(line)
        web.append(f"{item['query']} {item['choices'][item['gold']]}\n")
    # Short texts: twenty to a document, so that a context of 512 tokens is not all boundaries.
    pages = ["\n".join(web[start : start + 20]) for start in range(0, len(web), 20)]
    return [
        stream_of(documents(str(data / "eval/wikitext.valid.tokens.txt")), lm.tokenizer, "wikitext.valid"),
        stream_of(documents(str(data / "eval/books_long.jsonl")), lm.tokenizer, "books_long"),
        stream_of(pages, lm.tokenizer, "hellaswag_val"),
    ]


def token_table(run: Path, trained: TrainedPolicy) -> ValueNetwork:
    """The same network fitted to the same samples, but shown the token's embedding alone: what a table knows."""
    config = read_stored(run)
    assert isinstance(config, ValueTrainConfig)
    assert isinstance(trained.network, ValueNetwork)
    samples = read_samples(run, config.batches)
    lm = load(config.model)
    table = lm.model.get_input_embeddings().weight.detach().cpu().to(torch.bfloat16)
    lm.detach()
    seen = table[samples.tokens.long()][:, None].expand_as(samples.hidden)
    network, found = fit(
        replace(samples, hidden=seen), trained.network.config.model_copy(update={"layer": 0}), config.fit
    )
    print("token table explains", found.explained, flush=True)
    with torch.no_grad():
        for costs, known in zip(network.level_costs, trained.network.level_costs, strict=True):
            costs.copy_(known)
    return network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="The run folder of `solm train --method values`.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/results/policies"))
    parser.add_argument("--spaces", default=",".join(BUDGETS))
    parser.add_argument("--sequences", type=int, default=204)
    parser.add_argument("--trials", type=int, default=2)
    parser.add_argument("--oracle", default="mlp-fine,joint-27", help="Spaces in which the ceiling is measured too.")
    options = parser.parse_args()
    trained = TrainedPolicy.from_pretrained(options.run / "policy" if options.run else "builtin:smollm2-135m")
    table_network = token_table(options.run, trained) if options.run else None
    for name in options.spaces.split(","):
        space = ActionSpace.preset(name)
        lm = load("builtin:smollm2-135m", trained.with_space(space))
        assert lm.tokenizer is not None
        settings = EvaluationSettings(
            budgets=BUDGETS[name], texts=options.sequences, trials=options.trials,
            oracle=name in options.oracle.split(","),
        )  # fmt: skip
        texts = documents(str(options.data / "train/web"))[:500] + documents(str(options.data / "train/wiki"))[:500]
        tuning = stream_of(texts, lm.tokenizer, "train/web, train/wiki")
        result = evaluate(
            lm,
            held_out(options.data, lm),
            settings,
            partial=options.out / f"{name}.partial",
            progress=lambda done, total, name=name: print(f"{name}: {done}/{total}", flush=True),
            tuning=tuning,
            rivals={
                **({} if table_network is None else {"token-table": ValuePolicy(table_network, space)}),
                **{arm: baseline(arm, lm, space, tuning) for arm in BASELINES.get(name, ("constant",))},
            },
        )
        write_text(options.out / f"{name}.json", result.model_dump_json(indent=2) + "\n")
        from rich.console import Console

        console = Console(width=130)
        console.print(table(result))
        console.print("\n".join(verdict(result)))
        lm.detach()


if __name__ == "__main__":
    main()
