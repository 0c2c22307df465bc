"""The table of the README: one value policy in six action spaces against every baseline, on held-out text.

    python benchmarks/policies.py --policy runs/values/policy --table runs/table/policy --data DATA --out docs/results

DATA is a folder with eval/wikitext.valid.tokens.txt, eval/books_long.jsonl, eval/hellaswag_val.jsonl (held out) and
train/ (text that static-tuned is chosen on). The budgets were fixed before any of the held-out text was scored.
"""

import argparse
import json
from pathlib import Path

from solm.actions import ActionSpace
from solm.data.windows import TokenStream, stream_of, token_stream
from solm.decoding.api import load
from solm.evaluation.perplexity import EvaluationSettings, evaluate
from solm.evaluation.show import table, verdict
from solm.files import write_text
from solm.policies.artifact import TrainedPolicy
from solm.policies.prices import Allocator

# Net keeps; in a space with one axis, (share + 2) / 3. Static loses .05 to .5 nats a token at these.
BUDGETS = {
    "attention-fine": (0.735, 0.77),
    "mlp-fine": (0.82, 0.855),
    "bits-fine": (0.76, 0.777),
    "joint-8": (0.48, 0.6),
    "joint-27": (0.45, 0.6),
    "joint-336": (0.45, 0.6),
}


def held_out(data: Path, lm) -> list[TokenStream]:  # type: ignore[no-untyped-def]
    """Wikipedia, books and the web."""
    web = []
    for line in (data / "eval/hellaswag_val.jsonl").read_text().splitlines():
        item = json.loads(line)
        web.append(f"{item['query']} {item['choices'][item['gold']]}\n")
    # Short texts: twenty to a document, so that a context of 512 tokens is not all boundaries.
    pages = ["\n".join(web[start : start + 20]) for start in range(0, len(web), 20)]
    return [
        token_stream(str(data / "eval/wikitext.valid.tokens.txt"), lm.tokenizer),
        token_stream(str(data / "eval/books_long.jsonl"), lm.tokenizer),
        stream_of(pages, lm.tokenizer, "hellaswag_val"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--table", help="A policy trained with layer 0, which knows the token alone.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/results/policies"))
    parser.add_argument("--spaces", default=",".join(BUDGETS))
    parser.add_argument("--sequences", type=int, default=204)
    parser.add_argument("--trials", type=int, default=2)
    options = parser.parse_args()
    trained = TrainedPolicy.from_pretrained(options.policy)
    for name in options.spaces.split(","):
        space = ActionSpace.preset(name)
        lm = load("builtin:smollm2-135m", trained.with_space(space))
        assert lm.tokenizer is not None
        rivals: dict[str, Allocator] = {}
        if options.table:
            rival = TrainedPolicy.from_pretrained(options.table).with_space(space).policy()
            assert isinstance(rival, Allocator)
            rivals["token-table"] = rival
        settings = EvaluationSettings(
            budgets=BUDGETS[name], sequences=options.sequences, trials=options.trials, oracle=True
        )
        tuning = token_stream([str(options.data / "train/web"), str(options.data / "train/wiki")], lm.tokenizer)
        result = evaluate(
            lm,
            held_out(options.data, lm),
            settings,
            partial=options.out / f"{name}.partial",
            progress=lambda done, total, name=name: print(f"{name}: {done}/{total}", flush=True),
            tuning=tuning,
            rivals=rivals,
        )
        write_text(options.out / f"{name}.json", result.model_dump_json(indent=2) + "\n")
        from rich.console import Console

        console = Console(width=130)
        console.print(table(result))
        console.print("\n".join(verdict(result)))
        lm.detach()


if __name__ == "__main__":
    main()
