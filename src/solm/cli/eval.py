"""`solm eval`."""

from pathlib import Path
from typing import Annotated

import typer

from solm.cli.options import (
    DEFAULT_MODEL,
    DtypeOption,
    ModelOption,
    PolicyOption,
    SeedOption,
    numbers,
    output,
    progress_bar,
    settings,
)
from solm.errors import SolmError


def evaluate(
    data: Annotated[
        str, typer.Option("--data", "-d", help=".txt, .raw, .jsonl, folder, hub data set or pydoc:heldout.")
    ],
    model: ModelOption = DEFAULT_MODEL,
    policy: PolicyOption = None,
    budgets: Annotated[str, typer.Option(help="Net keeps, fixed in advance.")] = "0.55,0.65,0.75",
    sequences: Annotated[int, typer.Option(help="Texts.")] = 64,
    context: Annotated[int, typer.Option(help="Tokens read densely first.")] = 512,
    length: Annotated[int, typer.Option(help="Controlled tokens that are scored.")] = 128,
    trials: Annotated[int, typer.Option(help="Random schedules per text.")] = 8,
    space: Annotated[str | None, typer.Option(help="Action space without a policy, such as joint-8.")] = None,
    semantics: Annotated[str | None, typer.Option(help="Without a policy: default or paper.")] = None,
    seed: SeedOption = 0,
    dtype: DtypeOption = "auto",
    json: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a PNG of perplexity against cost here.")] = None,
) -> None:
    """Compare a policy with dense, static and random schedules at the same realised budget.

    Examples:

        solm eval --policy runs/a/policy --data pydoc:heldout --json result.json --plot result.png

        solm eval --space joint-27 --data wiki.txt --budgets 0.6     (baselines alone)

    An interrupted evaluation with --json goes on where it stopped.
    """
    from solm.actions import ActionSpace
    from solm.data.windows import token_stream
    from solm.decoding.api import load
    from solm.evaluation import show
    from solm.evaluation.perplexity import EvaluationSettings
    from solm.evaluation.perplexity import evaluate as run
    from solm.files import write_bytes, write_text
    from solm.semantics import Semantics

    if policy is not None and (space is not None or semantics is not None):
        raise SolmError("a policy brings its own action space and semantics; drop --space and --semantics")
    if policy is None and space is None:
        raise SolmError("give a policy to evaluate, or --space to compare the baselines alone")
    chosen = settings(
        EvaluationSettings, budgets=numbers(budgets, "--budgets"), sequences=sequences, context=context, length=length,
        trials=trials, seed=seed,
    )  # fmt: skip
    grid = None if space is None else ActionSpace.preset(space)
    lm = load(model, policy, semantics=None if semantics is None else Semantics.preset(semantics), dtype=dtype)
    assert lm.tokenizer is not None
    stream = token_stream(data, lm.tokenizer)
    partial = None if json is None else json.with_name(json.name + ".partial")
    with progress_bar() as progress:
        task = progress.add_task("evaluating", total=None, note="")
        result = run(
            lm, stream, chosen, grid, partial, lambda done, total: progress.update(task, completed=done, total=total)
        )
    if json is not None:
        write_text(json, result.model_dump_json(indent=2) + "\n")
    if plot is not None:
        write_bytes(plot, show.plot(result))
    console = output()
    console.print(show.table(result))
    for line in show.verdict(result):
        console.print(line)
