"""Is bfloat16 good enough to train on? The same random schedules on the same text, scored in bfloat16 and in float32.

Compares costs token by token, and how much of the *float32* costs of held-out texts a network explains that was
fitted to the samples of either; every fit is repeated with a few seeds, which tells what a difference is worth.
`--off-grid FOLDER` writes the model with weights that lie on no grid of 4 bits, and compares nothing.

Example: solm study precision --data books.txt,web.txt --batches 10 --out precision.json
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from pydantic import Field

from solm.core.cost import ModelShapes
from solm.core.errors import SolmError
from solm.core.files import beside, read_tensors, write_tensors
from solm.core.parts import Parts
from solm.data.windows import TokenStream
from solm.evaluation.pictures import Kind, blank, picture
from solm.evaluation.result import Record, record
from solm.policies.artifact import TrainedPolicy
from solm.policies.value_policy import ValueConfig
from solm.research.off_grid import write_off_grid
from solm.research.studies import Progress, StudyOptions, check_layer
from solm.runtime.language_model import LanguageModel
from solm.training.config import FitConfig, ValueTrainConfig
from solm.training.counterfactual import Samples
from solm.training.ranks import Ranks
from solm.training.regression import fit
from solm.training.sources import training_streams
from solm.training.values import batch_of_samples, from_end

_DTYPES = ("bfloat16", "float32")
_HELD_OUT, _SEEDS = 0.25, 5


class Options(StudyOptions):
    texts: int = Field(4, ge=2, description="Texts per batch.")
    context: int = Field(384, ge=1, description="Tokens read densely before the controlled ones.")
    length: int = Field(256, ge=1, description="Tokens under random schedules.")
    layer: int = Field(4, ge=0, description="Layer before which the network observes.")
    batches: int = Field(10, ge=1, description="Number of batches of texts.")
    off_grid: Path | None = Field(None, description="Write the rescaled model to this folder, and nothing else.")

    def check(self, shapes: ModelShapes, context: int | None, trained: TrainedPolicy | None) -> None:
        check_layer(self.layer, shapes)
        self.training()

    def training(self) -> ValueTrainConfig:
        """What samples are collected by. Raises `SolmError` for values that do not go together."""
        values = {
            "model": self.model, "data": self.data, "batches": self.batches, "texts": self.texts,
            "context": self.context, "length": self.length, "seed": self.seed, "layer": self.layer,
            "fit": FitConfig(held_out=_HELD_OUT),
        }  # fmt: skip
        return ValueTrainConfig.build(values, "options")


def run(options: Options, partial: Path | None, progress: Progress) -> Record:
    """Results: the costs in either dtype and how they differ, and the shares of float32 costs explained, by seed.

    Samples are kept in the folder beside `partial` until the result is written.
    """
    if options.off_grid is not None:
        change = write_off_grid(options.load(dtype="float32"), options.off_grid)
        return record("precision", options.model_dump(mode="json"), {"largest_change": change})
    if options.dtype != "auto":
        raise SolmError("--dtype: this study compares bfloat16 with float32; leave it out")
    if partial is None:
        with TemporaryDirectory() as folder:
            return _compare(options, None, Path(folder), progress)
    return _compare(options, partial, beside(partial), progress)


def _compare(options: Options, partial: Path | None, folder: Path, progress: Progress) -> Record:
    """Collect samples in `folder`, fit networks to them, and compare."""
    config = options.training()
    found: dict[str, Samples] = {}
    for dtype in _DTYPES:
        with options.load(dtype=dtype) as lm:
            streams = training_streams(lm, config, folder, Ranks())
            # Both dtypes read the same tokens of the same model, so that both get the same key.
            model = lm.identity.model_dump(mode="json", exclude={"weights", "sample"})
            texts = [stream.fingerprint for stream in streams]
            parts = Parts(partial, [config.model_dump(mode="json"), texts, model, options.revision])
            found[dtype] = _collected(lm, config, streams, parts, folder / dtype, progress)
    seen = int(len(found["float32"].dense) * (1 - _HELD_OUT))
    test = _some(found["float32"], slice(seen, None))
    network = ValueConfig(base_hidden=test.hidden.shape[-1], layer=config.layer, grid=config.space, width=config.width)
    explained: dict[str, list[float]] = {dtype: [] for dtype in _DTYPES}
    for dtype in _DTYPES:
        joined = Samples.join([_some(found[dtype], slice(seen)), test], len(found[dtype].dense))
        for seed in range(_SEEDS):
            progress(f"fits to {dtype}", seed, _SEEDS)
            explained[dtype].append(fit(joined, network, FitConfig(held_out=_HELD_OUT, seed=seed))[1].explained[-1])
    low, full = (found[dtype].cost.double().flatten() for dtype in _DTYPES)
    costs: dict[str, Any] = {
        "mean": {"bfloat16": float(low.mean()), "float32": float(full.mean())},
        "sd": {"bfloat16": float(low.std()), "float32": float(full.std())},
        "rms_difference": float((low - full).square().mean().sqrt()),
        "median_difference": float((low - full).abs().median()),
        "correlation": float(torch.corrcoef(torch.stack([low, full]))[0, 1]),
    }
    fits = {"held_out_texts": len(test.dense), "explained_of_float32": explained}
    return record("precision", options.model_dump(mode="json"), {"samples": len(full), "costs": costs, **fits})


def _collected(
    lm: LanguageModel, config: ValueTrainConfig, streams: list[TokenStream], parts: Parts, folder: Path,
    progress: Progress,
) -> Samples:  # fmt: skip
    """All batches of samples, each in a file of `folder`. `parts` names those that an interrupted run has written."""

    def write(batch: int) -> str:
        path = folder / f"{batch:05d}.safetensors"
        write_tensors(path, dict(vars(batch_of_samples(lm, config, streams, batch, from_end(config, batch)))))
        return path.name

    found = []
    for batch in range(1, config.batches + 1):
        progress(folder.name, batch - 1, config.batches)
        name = parts.get(f"{folder.name} {batch}", lambda batch=batch: write(batch))  # type: ignore[misc]
        found.append(Samples(**read_tensors(folder / name)))
    return Samples.join(found, config.batches * config.texts)


def _some(found: Samples, texts: slice) -> Samples:
    return Samples(**{name: value[texts] for name, value in vars(found).items()})


def lines(found: Record) -> list[str]:
    if "costs" not in found.results:
        return [f"largest change of a logit: {found.results['largest_change']:.1e}"]
    costs, explained = found.results["costs"], found.results["explained_of_float32"]
    return [
        f"costs in bfloat16 and float32: correlation {costs['correlation']:.4f}, RMS difference "
        f"{costs['rms_difference']:.4f} nats",
        *(
            f"{dtype}: {np.mean(shares):.4f} ± {np.std(shares):.4f} of the float32 costs explained"
            for dtype, shares in explained.items()
        ),
    ]


def plot(found: Record, kind: Kind) -> bytes:
    """The share of float32 costs that is explained, by seed of the fit; raises `SolmError` after --off-grid."""
    if "costs" not in found.results:
        raise SolmError("--plot: there is nothing to draw with --off-grid")
    figure, axes = blank()
    for place, (dtype, shares) in enumerate(found.results["explained_of_float32"].items()):
        axes.plot([place] * len(shares), shares, "o", label=dtype)
    axes.set_xticks(range(len(_DTYPES)), _DTYPES)
    axes.set_ylabel("share of float32 costs explained")
    axes.grid(alpha=0.25)
    return picture(figure, kind)
