"""`solm shift`."""

from pathlib import Path
from typing import Annotated

import typer

from solm.cli.options import (
    DEFAULT_MODEL,
    DtypeOption,
    ModelOption,
    SeedOption,
    in_space,
    numbers,
    output,
    progress_bar,
    settings,
)


def shift(
    policy: Annotated[str, typer.Option("--policy", "-p", help="Folder or hub id of a trained policy.")],
    data: Annotated[str, typer.Option("--data", "-d", help="Comma-separated sources, each evaluated by itself.")],
    model: ModelOption = DEFAULT_MODEL,
    space: Annotated[str | None, typer.Option(help="Action space within the policy's own, such as joint-27.")] = None,
    budgets: Annotated[str, typer.Option(help="Net keeps, fixed in advance.")] = "0.5,0.65",
    sequences: Annotated[int, typer.Option(help="Texts of each source.")] = 32,
    context: Annotated[int, typer.Option(help="Tokens read densely first.")] = 512,
    length: Annotated[int, typer.Option(help="Controlled tokens that are scored.")] = 128,
    seed: SeedOption = 0,
    dtype: DtypeOption = "auto",
    json: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture (.png or .svg) here.")] = None,
) -> None:
    """Evaluate a policy on sources unlike its training text: what it is worth, what it spends, what it predicts.

    Per source: policy minus static at the same realised budget, how far what was spent is from what was asked for, and
    how differently the network judges tokens from how it did in training.

    Example:

        solm shift -p builtin:smollm2-135m --space joint-27 --data poems.txt,logs.txt,pydoc --json s.json --plot s.svg

    An interrupted study with --json goes on at the source where it stopped.
    """
    from rich.table import Table

    from solm.core.actions import AXES, ActionSpace
    from solm.core.files import resumable, write_bytes, write_text
    from solm.data.windows import token_stream
    from solm.evaluation.perplexity import EvaluationSettings
    from solm.evaluation.pictures import kind_of
    from solm.policies.artifact import TrainedPolicy
    from solm.research import domains as study
    from solm.runtime.load import load

    kind = kind_of(plot)
    chosen = settings(
        EvaluationSettings, budgets=numbers(budgets, "--budgets"), sequences=sequences, context=context, length=length,
        trials=1, seed=seed, examples=0,
    )  # fmt: skip
    grid = None if space is None else ActionSpace.preset(space)
    lm = load(model, in_space(TrainedPolicy.from_pretrained(policy), grid), dtype=dtype)
    assert lm.tokenizer is not None
    streams = [token_stream(source, lm.tokenizer) for source in data.split(",")]
    with resumable(json) as partial, progress_bar() as progress:
        bar = progress.add_task("evaluating", total=None, note="")
        result = study.shift(
            lm, streams, chosen, partial,
            lambda source, done, total: progress.update(bar, completed=done, total=total, note=source),
        )  # fmt: skip
        if json is not None:
            write_text(json, result.model_dump_json(indent=2) + "\n")
    if plot is not None:
        write_bytes(plot, study.plot(result, kind))
    shown = Table(title="Policy by source", title_justify="left")
    titles = ("source", "budget", "realised", "gap", "policy − static [95 %]", *(f"{axis}: mean, KL" for axis in AXES))
    for title in titles:
        shown.add_column(title, no_wrap=True)
    for source in result.sources:
        said = [f"{found.mean:.2f}, {found.divergence:.3f}" for found in source.sensitivities.values()]
        for point in source.points:
            gain, net = point.difference, sum(point.realised.values()) / 3
            shown.add_row(
                Path(source.name).name, f"{point.budget:g}", f"{net:.3f}", f"{point.gap:.3f}",
                f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]", *said,
            )  # fmt: skip
            said = ["", "", ""]
    output().print(shown)
