"""`solm pollution`."""

from pathlib import Path
from typing import Annotated

import typer

from solm.cli.options import DEFAULT_MODEL, DtypeOption, ModelOption, SeedOption, output, progress_bar


def pollution(
    data: Annotated[str, typer.Option("--data", "-d", help="Comma-separated sources of held-out text.")],
    action: Annotated[str, typer.Option(help="The cheap action, as a tag: attention, MLP, bits.")] = "k010-s040-q5",
    model: ModelOption = DEFAULT_MODEL,
    burst: Annotated[int, typer.Option(help="Cheap steps.")] = 16,
    sequences: Annotated[int, typer.Option(help="Texts.")] = 48,
    context: Annotated[int, typer.Option(help="Tokens read densely first.")] = 512,
    length: Annotated[int, typer.Option(help="Tokens in all after those.")] = 128,
    seed: SeedOption = 0,
    dtype: DtypeOption = "auto",
    json: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture (.png or .svg) here.")] = None,
) -> None:
    """Measure how long a burst of cheap steps makes the dense steps after it worse.

    Example:

        solm pollution --data pydoc:heldout --action k010-s040-q5 --burst 16 --json pollution.json --plot pollution.svg
    """
    from solm.core.actions import Action
    from solm.core.files import write_bytes, write_text
    from solm.data.windows import token_stream
    from solm.evaluation.pictures import kind_of
    from solm.research import kv_drift as study
    from solm.runtime.load import load

    cheap, kind = Action.from_tag(action), kind_of(plot)
    lm = load(model, dtype=dtype)
    assert lm.tokenizer is not None
    streams = [token_stream(source, lm.tokenizer) for source in data.split(",")]
    with progress_bar() as progress:
        bar = progress.add_task("scoring", total=None, note="")
        result = study.pollution(
            lm, streams, cheap, burst, sequences=sequences, context=context, length=length, seed=seed,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )  # fmt: skip
    if json is not None:
        write_text(json, result.model_dump_json(indent=2) + "\n")
    if plot is not None:
        write_bytes(plot, study.plot(result, kind))
    console = output()
    for name, points in result.after.items():
        console.print(
            f"{name:10} during {result.during[name].value:+.3f} nats/token; after, by {result.stretch} tokens:"
        )
        console.print("           " + "  ".join(f"{p.value:+.4f} [{p.low:+.4f}, {p.high:+.4f}]" for p in points))
