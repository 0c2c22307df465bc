"""`solm allocation`."""

from pathlib import Path
from typing import Annotated

import typer

from solm.cli.options import DEFAULT_MODEL, DtypeOption, ModelOption, SeedOption, output, progress_bar


def allocation(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File for the allocation; an interrupted run there goes on.")
    ],
    data: Annotated[str, typer.Option("--data", "-d", help="Comma-separated sources of text.")] = "pydoc:train",
    model: ModelOption = DEFAULT_MODEL,
    sparsity: Annotated[str, typer.Option(help="default or native.")] = "default",
    texts: Annotated[int, typer.Option(help="Texts: half to measure on, half to check on.")] = 24,
    context: Annotated[
        str, typer.Option(help="Tokens read densely first; more than one, as 1024,4096: costs are averaged.")
    ] = "1024",
    tokens: Annotated[int, typer.Option(help="Tokens measured after those.")] = 64,
    seed: SeedOption = 0,
    dtype: DtypeOption = "auto",
) -> None:
    """Find how much of what an action keeps each layer and KV head should have: some lose more without it than others.

    Examples:

        solm allocation --data my_texts/ --out layers.json

        solm allocation --data my_texts/ --context 1024,4096 --out layers.json      (for long contexts too)

        solm train --allocation layers.json --data my_texts/ --out runs/a
    """
    import torch

    from solm.core.errors import DataError
    from solm.core.sparsity import SparsityConfig
    from solm.data.windows import token_stream
    from solm.runtime.load import load
    from solm.training.allocate import find_allocation
    from solm.training.sources import draw_windows

    if not all(part.strip().isdigit() for part in context.split(",")):
        raise DataError(f"context must be whole numbers of tokens, such as 1024,4096, got {context!r}")
    contexts = [int(part) for part in context.split(",")]
    lm = load(model, sparsity=SparsityConfig.preset(sparsity), dtype=dtype)
    assert lm.tokenizer is not None
    streams = [token_stream(source, lm.tokenizer) for source in data.split(",")]
    windows = draw_windows(streams, texts, max(contexts) + tokens, torch.Generator().manual_seed(seed))
    with progress_bar() as progress:
        bar = progress.add_task("measuring heads and layers", total=None, note="")
        try:
            found = find_allocation(
                lm, windows, contexts, out, lambda done, total: progress.update(bar, completed=done, total=total)
            )
        except KeyboardInterrupt:
            progress.stop()
            typer.echo("interrupted; what was measured is kept. The same command goes on from there", err=True)
            raise typer.Exit(130) from None
    console = output()
    console.print("divergence from dense, nats per token, on the texts left out:")
    for row in found["checked"]:
        console.print(
            f"after {row['context']} {row['axis']:>9} {row['keep']:.2f}   evenly {row['even']:.4f}   by this allocation "
            f"{row['allocation']:.4f}   (difference ± {row['standard_error_of_difference']:.4f})"
        )
    if any(row["allocation"] > row["even"] + 2 * row["standard_error_of_difference"] for row in found["checked"]):
        console.print("worse than an even deal somewhere: measure on more --texts or --tokens")
    console.print(f"allocation: {out}")
