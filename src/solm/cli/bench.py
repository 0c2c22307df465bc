"""`solm bench`."""

from pathlib import Path
from typing import Annotated

import typer

from solm.cli.options import (
    DEFAULT_MODEL,
    BackendOption,
    DtypeOption,
    KvCacheOption,
    ModelOption,
    PolicyOption,
    PrecisionOption,
    output,
    progress_bar,
)
from solm.core.errors import ContextLengthError, SolmError


def bench(
    model: ModelOption = DEFAULT_MODEL,
    policy: PolicyOption = None,
    contexts: Annotated[str, typer.Option(help="Tokens seen before the steps that are timed.")] = "64,1024,4096",
    rounds: Annotated[int, typer.Option(help="Interleaved rounds; medians are kept.", min=1, max=1000)] = 5,
    dtype: DtypeOption = "auto",
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    kv_cache_dtype: KvCacheOption = "auto",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the calibration here, for budgets in milliseconds.")
    ] = None,
) -> None:
    """Measure this machine: what a step takes at every level of the dial, for several contexts.

    Examples:

        solm bench --backend native --precision int8 --out calibration.json

        solm generate --backend native --precision int8 --calibration calibration.json --budget ms=4.5 "Why?"
    """
    import torch
    from rich.table import Table

    from solm.core.files import write_text
    from solm.data.windows import token_stream
    from solm.evaluation.step_timing import measure
    from solm.runtime.load import load

    try:
        lengths = tuple(sorted({int(part) for part in contexts.split(",")}))
    except ValueError:
        raise SolmError(f"--contexts: {contexts!r} is not a list of whole numbers such as 64,1024") from None
    if lengths[0] < 1:
        raise SolmError(f"--contexts: {lengths[0]} is out of range, a context has at least 1 token")
    lm = load(model, policy, dtype=dtype, backend=backend, precision=precision, kv_cache_dtype=kv_cache_dtype)
    limit = getattr(lm.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is not None and lengths[-1] + 16 > limit:
        raise ContextLengthError(f"--contexts: {lengths[-1]} and 16 steps exceed this model's context of {limit}")
    assert lm.tokenizer is not None
    tokens = token_stream("pydoc:train", lm.tokenizer).spaced(1, lengths[-1] + 1, torch.Generator().manual_seed(0))
    with progress_bar() as progress:
        task = progress.add_task("measuring", total=None, note="")
        found = measure(
            lm, tokens, lengths, rounds, lambda done, total: progress.update(task, completed=done, total=total)
        )
    if out is not None:
        write_text(out, found.model_dump_json(indent=2) + "\n")
    about = f"{found.model}, {found.backend}, {found.threads} threads, {found.gigabytes_per_second:.0f} GB/s"
    shown = Table(title=f"{about}: milliseconds per step")
    shown.add_column("")
    for context in found.contexts:
        shown.add_column(f"context {context}", justify="right")
    rows = [("dense", [row[-1] for row in found.attention_ms])]
    rows += [
        (f"{name} {level:g}", [row[place] for row in table])
        for name, levels, table in (("pages", found.attention, found.attention_ms), ("MLP", found.mlp, found.mlp_ms))
        for place, level in enumerate(levels[:-1])
    ]
    rows.append((f"pages {found.attention[0]:g}, MLP {found.mlp[0]:g}", list(found.joint_ms)))
    if found.halved_ms:
        rows.append(("MLP weights' high halves", list(found.halved_ms)))
    for name, values in rows:
        cells = (f"{value:.2f} ({dense / value:.2f} x)" for value, dense in zip(values, rows[0][1], strict=True))
        shown.add_row(name, *cells)
    output().print(shown)
