"""Is bfloat16 good enough to train on? The same random schedules on the same text, scored in bfloat16 and in float32.

    python benchmarks/precision.py --data DATA

Compares the gains token by token, and how much of the *float32* gains of held-out texts a network explains that was
fitted to the samples of either; every fit is repeated with a few seeds, which tells what a difference is worth.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from learning import SOURCES
from solm.core.files import write_text
from solm.data.windows import TokenStream
from solm.evaluation.result import command_line, environment
from solm.policies.value_policy import ValueConfig
from solm.runtime.language_model import LanguageModel
from solm.runtime.load import load
from solm.training.config import FitConfig, ValueTrainConfig
from solm.training.counterfactual import Samples, collect_samples, draw_levels
from solm.training.ranks import Ranks
from solm.training.regression import fit
from solm.training.rollout import step_generator
from solm.training.sources import draw_windows, training_streams

DTYPES = ("bfloat16", "float32")
HELD_OUT, SEEDS = 0.25, 5


def collected(lm: LanguageModel, config: ValueTrainConfig, streams: list[TokenStream]) -> Samples:
    """The samples of `solm train` with this configuration."""
    parts = []
    for batch in range(1, config.batches + 1):
        generator = step_generator(config.seed, batch, 0)
        windows = draw_windows(streams, config.texts, config.context + config.length + 1, generator)
        before, after = draw_levels(config.space, config.texts, config.schedules, config.length, generator)
        parts.append(collect_samples(lm, windows, config.context, config.layer, before, after, config.space))
        print(f"{lm.model.dtype}: {batch} of {config.batches} batches", flush=True)
    return Samples.join(parts)


def some(samples: Samples, texts: slice) -> Samples:
    return Samples(**{name: value[texts] for name, value in vars(samples).items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("docs/results/precision.json"))
    options = parser.parse_args()
    data = tuple(str(options.data / "train" / source) for source in SOURCES)
    config = ValueTrainConfig(data=data, batches=options.batches)
    found: dict[str, Samples] = {}
    streams: list[TokenStream] = []
    for dtype in DTYPES:
        with load(config.model, dtype=dtype) as lm:
            streams = streams or training_streams(lm, config, Path(), Ranks())
            found[dtype] = collected(lm, config, streams)
    seen = int(len(found["float32"].dense) * (1 - HELD_OUT))
    test = some(found["float32"], slice(seen, None))
    network = ValueConfig(base_hidden=test.hidden.shape[-1], layer=config.layer, grid=config.space, width=config.width)
    explained: dict[str, list[float]] = {}
    for dtype in DTYPES:
        samples = Samples.join([some(found[dtype], slice(seen)), test])
        hows = [FitConfig(held_out=HELD_OUT, seed=seed) for seed in range(SEEDS)]
        explained[dtype] = [fit(samples, network, how)[1].explained[-1] for how in hows]
    low, full = (found[dtype].cost.double().flatten() for dtype in DTYPES)
    gains: dict[str, Any] = {
        "mean": {"bfloat16": float(low.mean()), "float32": float(full.mean())},
        "sd": {"bfloat16": float(low.std()), "float32": float(full.std())},
        "rms_difference": float((low - full).square().mean().sqrt()),
        "median_difference": float((low - full).abs().median()),
        "correlation": float(torch.corrcoef(torch.stack([low, full]))[0, 1]),
    }
    told = {"command": command_line(), "environment": environment(), "samples": len(full), "gains": gains}
    fits = {"held_out_texts": len(test.dense), "explained_of_float32": explained}
    print(json.dumps({**gains, **fits}, indent=2))
    write_text(options.out, json.dumps({**told, **fits}, indent=2) + "\n")


if __name__ == "__main__":
    main()
