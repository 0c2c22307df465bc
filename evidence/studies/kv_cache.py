"""KV cache: what keys and values in int8 lose, against those of 16 bits.

    python evidence/studies/kv_cache.py --model FILE.gguf --data TEXT --context 1024 --length 512 --out kv-cache.json

Held-out texts are read and scored densely under both caches. `loss`: nats per token of the scored tokens above those
with 16 bits; `divergence`: KL of the predictions, likewise, with 95 % intervals over texts.
"""

from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from evidence.record import Record, record
from evidence.studies.common import TextOptions, kept, main, progress
from solm.core.actions import DENSE
from solm.evaluation.result import paired_difference
from solm.runtime.language_model import LanguageModel
from solm.runtime.load import load

_BATCH = 2


class Options(TextOptions):
    texts: int = Field(24, ge=2, description="Number of texts.")
    length: int = Field(512, ge=1, description="Scored tokens of a text.")


def run(options: Options, partial: Path | None) -> Record:
    """Results: `loss` and `divergence`, each a value with its interval, and bytes of a token's keys and values."""
    models = [load(options.model, backend="cpu", kv_cache_dtype=kind) for kind in ("auto", "int8")]
    windows, fingerprints = options.windows(models[0])
    settings = options.model_dump(mode="json") | {"data_fingerprint": fingerprints}
    parts, batches = kept(partial, models[0], settings), windows.split(_BATCH)
    rows: list[list[float]] = []
    for index, batch in enumerate(batches):
        progress("batches of texts", index, len(batches))
        rows += parts.get(str(index), lambda batch=batch: _batch(models, batch, options.context))  # type: ignore[misc]
    loss, divergence = np.array(rows).T
    results = {
        name: paired_difference(values, np.zeros(len(values))).model_dump()
        for name, values in (("loss", loss), ("divergence", divergence))
    }
    shapes = [lm.shapes for lm in models]
    bits = [2 * each.layers * each.kv_heads * each.head_dim * each.cache_bits for each in shapes]
    return record("kv-cache", settings, results | {"bytes": [each / 8 for each in bits]})


def _batch(models: list[LanguageModel], windows: torch.Tensor, context: int) -> list[list[float]]:
    """Per text what int8 loses, in nats per token, and the divergence."""
    keep = torch.tensor(DENSE, dtype=torch.float64).repeat(len(windows), windows.shape[1] - context - 1, 1)
    found, reference = [], None
    for lm in models:
        session = lm.session(capacity=windows.shape[1])
        session.prefill(windows[:, :context])
        scored = session.score(windows[:, context:], keep, reference=reference, keep_logits=reference is None)
        reference = scored.logits if reference is None else reference
        found.append(scored)
    lost = (found[0].log_probabilities - found[1].log_probabilities).double().mean(1)
    assert found[1].divergences is not None
    return torch.stack([lost, found[1].divergences.double().mean(1)], 1).tolist()


def lines(found: Record) -> list[str]:
    shown = "{name}: {value:+.4f} [{low:+.4f}, {high:+.4f}] nats per token"
    return [shown.format(name=name, **found.results[name]) for name in ("loss", "divergence")]


if __name__ == "__main__":
    main(Options, run, lines, __doc__)
