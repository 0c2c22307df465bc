"""Memory of a long context: what one row takes, against the arithmetic of its weights, keys and values.

    python evidence/studies/context_memory.py --model FILE.gguf --context 32768 --out context-memory.json

The row reads random tokens, in a process of its own for each dtype of the KV cache. `peak`: the largest resident memory
of that process, bytes. `arithmetic`: the model's file, and its keys and values in as many bits as the dtype says.
"""

import resource
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from pydantic import Field

from evidence.record import Record, record
from evidence.studies.common import Names, Options, main, progress
from solm.backends.cpu.engine import VALUE_BITS
from solm.core.errors import SolmError
from solm.runtime.language_model import check_length
from solm.runtime.load import load

_CHUNK = 1024


class MemoryOptions(Options):
    context: int = Field(32768, ge=1, description="Tokens of the row.")
    dtypes: Names = Field(tuple(VALUE_BITS), validate_default=True, description="Dtypes of the KV cache.")


def run(options: MemoryOptions, _: Path | None) -> Record:
    """Results by dtype: bytes `before` the row reads, at the `peak`, of `pages`, and by the `arithmetic`."""
    if not Path(options.model).is_file():
        raise SolmError(f"--model: {options.model} is not a file")
    results = {}
    for dtype in options.dtypes:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            results[dtype] = process.submit(_measured, options, dtype).result()
    return record("context-memory", options.model_dump(mode="json"), results)


def _measured(options: MemoryOptions, dtype: str) -> dict[str, int]:
    with load(options.model, backend="cpu", kv_cache_dtype=dtype) as lm:
        check_length(options.context, 0, lm.context)
        before, session = _peak(), lm.session(capacity=options.context)
        tokens = torch.randint(lm.shapes.vocabulary, (1, options.context), generator=torch.Generator().manual_seed(0))
        chunks = tokens.split(_CHUNK, 1)
        for index, chunk in enumerate(chunks):
            progress(f"chunks of {_CHUNK} tokens, {dtype}", index, len(chunks))
            session.prefill(chunk)
        pages = lm.backend.pages_held()
        assert pages is not None
        shapes, bits = lm.shapes, 8 + VALUE_BITS[dtype] if VALUE_BITS[dtype] else 32  # of a key and a value
        numbers = shapes.layers * shapes.kv_heads * shapes.head_dim * options.context
        arithmetic = Path(options.model).stat().st_size + numbers * bits // 8
        return {"before": before, "peak": _peak(), "pages": int(pages[1]), "arithmetic": arithmetic}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def lines(found: Record) -> list[str]:
    return [
        f"{dtype}: {told['peak'] / told['arithmetic']:.2f} of the arithmetic" for dtype, told in found.results.items()
    ]


if __name__ == "__main__":
    main(MemoryOptions, run, lines, __doc__)
