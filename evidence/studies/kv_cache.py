"""KV cache: what keys and values in fewer bits lose, against those of 16 bits.

    python evidence/studies/kv_cache.py --model FILE.gguf --data TEXT --context 1024 --length 512 --out kv-cache.json

Held-out texts are read and scored densely under every cache. `loss`: nats per token of the scored tokens above those
with 16 bits; `divergence`: KL of the predictions, likewise, with 95 % intervals over texts.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from evidence.record import Record, record
from evidence.studies.common import TextOptions, kept, main, progress
from solm.backends.cpu.engine import VALUE_BITS
from solm.core.actions import DENSE
from solm.evaluation.result import paired_difference
from solm.runtime.language_model import LanguageModel
from solm.runtime.load import load

_BATCH = 2


class Options(TextOptions):
    texts: int = Field(24, ge=2, description="Number of texts.")
    length: int = Field(512, ge=1, description="Scored tokens of a text.")


def run(options: Options, partial: Path | None) -> Record:
    """Results by dtype of the cache: bytes of a token's keys and values, and of those below 16 bits `loss` and
    `divergence`, each a value with its interval."""
    models = [load(options.model, backend="cpu", kv_cache_dtype=kind) for kind in VALUE_BITS]
    windows, fingerprints = options.windows(models[0])
    settings = options.model_dump(mode="json") | {"data_fingerprint": fingerprints}
    parts, batches = kept(partial, models[0], settings), windows.split(_BATCH)
    rows: list[list[list[float]]] = []
    for index, batch in enumerate(batches):
        progress("batches of texts", index, len(batches))
        rows += parts.get(str(index), lambda batch=batch: _batch(models, batch, options.context))  # type: ignore[misc]
    values = np.array(rows)
    results: dict[str, dict[str, Any]] = {}
    for number, (kind, lm) in enumerate(zip(VALUE_BITS, models, strict=True)):
        shapes = lm.shapes
        of_token = 2 * shapes.layers * shapes.kv_heads * shapes.head_dim * shapes.cache_bits / 8
        results[kind] = {"bytes": of_token} | {
            name: paired_difference(values[:, number - 1, at], np.zeros(len(values))).model_dump()
            for at, name in enumerate(("loss", "divergence") if number else ())
        }
    return record("kv-cache", settings, results)


def _batch(models: list[LanguageModel], windows: torch.Tensor, context: int) -> list[list[list[float]]]:
    """Per text and cache below 16 bits what it loses, in nats per token, and the divergence."""
    keep = torch.tensor(DENSE, dtype=torch.float64).repeat(len(windows), windows.shape[1] - context - 1, 1)
    found, reference = [], None
    for lm in models:
        session = lm.session(capacity=windows.shape[1])
        session.prefill(windows[:, :context])
        scored = session.score(windows[:, context:], keep, reference=reference, keep_logits=reference is None)
        reference = scored.logits if reference is None else reference
        found.append(scored)
    lost = [
        torch.stack([(found[0].log_probabilities - each.log_probabilities).mean(1), each.divergences.mean(1)], 1)  # type: ignore[union-attr]
        for each in found[1:]
    ]
    return torch.stack(lost, 1).double().tolist()


def lines(found: Record) -> list[str]:
    shown = "{kind}, {name}: {value:+.4f} [{low:+.4f}, {high:+.4f}] nats per token"
    return [
        shown.format(kind=kind, name=name, **found.results[kind][name])
        for kind in list(VALUE_BITS)[1:]
        for name in ("loss", "divergence")
    ]


if __name__ == "__main__":
    main(Options, run, lines, __doc__)
