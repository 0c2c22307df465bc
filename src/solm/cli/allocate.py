"""`solm allocate`."""

from pathlib import Path
from typing import Annotated

import typer

from solm.cli import checks
from solm.cli.options import (
    DEFAULT_MODEL,
    DataOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    RevisionOption,
    RunSeedOption,
    TrustOption,
)
from solm.cli.sources import long_enough, read_sources, streams
from solm.core.errors import SolmError


def allocate(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File for the allocation; an interrupted run there continues.")
    ],
    data: DataOption = "pydoc:train",
    model: ModelOption = DEFAULT_MODEL,
    sparsity: Annotated[str, typer.Option(help="How actions are carried out: default or cpu.")] = "default",
    texts: Annotated[int, typer.Option(help="Number of texts: half to measure on, half to check on.", min=2)] = 24,
    context: Annotated[
        str, typer.Option(help="Tokens read densely first; for several, such as 1024,4096, losses are averaged.")
    ] = "1024",
    length: Annotated[int, typer.Option(help="Controlled tokens per text that are scored.", min=1)] = 64,
    seed: RunSeedOption = 0,
    dtype: DtypeOption = "auto",
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    json: JsonOption = False,
) -> None:
    """Find how much each layer and KV head should keep of an action: some lose more than others.

    \b
    Examples:
      solm allocate --data my_texts/ --out layers.json
      solm allocate --data my_texts/ --context 1024,4096 --out layers.json
      solm train --allocation layers.json --data my_texts/ --out runs/a
    """
    import torch

    from solm.cli.output import output, print_json, progress_bar
    from solm.runtime.load import load
    from solm.training.allocate import axes_of, find_allocation
    from solm.training.sources import draw_halves

    contexts = list(checks.counts(context, "--context"))
    checks.out_file(out)
    checks.backend("torch", None, None, dtype)
    how = checks.sparsity_of(sparsity)
    assert how is not None
    if how.window == 0:
        raise SolmError(f"--sparsity: {sparsity} chooses among all pages and has no allocation; choose default or cpu")
    if contexts[0] < how.always_read:
        raise SolmError(f"--context: {contexts[0]} is out of range: {how.always_read} tokens are always read")
    config = checks.model_config(model, revision, trust_remote_code)
    checks.room(config, contexts[-1] + length, "--context and --length")
    sources = read_sources(data)
    long_enough(sources, contexts[-1] + length)
    lm = load(
        model, tokenizer=checks.tokenizer(model, revision, trust_remote_code), sparsity=how, dtype=dtype,
        backend="torch", revision=revision, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    tokens = streams(sources, lm.tokenizer)
    windows = draw_halves(tokens, texts, contexts[-1] + length, torch.Generator().manual_seed(seed))
    with progress_bar() as progress:
        found = find_allocation(
            lm, windows, contexts, out,
            lambda done, total: progress.show("measuring heads and layers", done, total),
            axes_of(how),
        )  # fmt: skip
    if json:
        print_json({"allocation": str(out), "checked": found["checked"]})
        return
    console = output()
    console.print("divergence from dense, nats per token, on held-out texts:")
    for row in found["checked"]:
        console.print(
            f"after {row['context']} {row['axis']:>9} {row['keep']:.2f}   uniform {row['even']:.4f}   allocated "
            f"{row['allocation']:.4f}   (difference ± {row['standard_error_of_difference']:.4f})"
        )
    if any(row["allocation"] > row["even"] + 2 * row["standard_error_of_difference"] for row in found["checked"]):
        console.print("the allocation loses more than uniform in a row above: measure with more --texts or --length")
    console.print(f"allocation: {out}")
