"""`solm quickstart`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from solm.cli.options import output, progress_bar


def quickstart(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where everything is written.")] = Path("runs/quickstart"),
    updates: Annotated[int, typer.Option(help="Training updates.", min=1)] = 80,
) -> None:
    """Train, compare and use a policy for the embedded model, in minutes, on text that ships with Python.

    A second run goes on where the first stopped, or reuses what is there.

    Examples:

        solm quickstart

        solm quickstart --out /tmp/quick --updates 5      (a smoke test)
    """
    from solm.cli.generate import paint
    from solm.cli.train import note
    from solm.evaluation import show
    from solm.quickstart import run
    from solm.training.trainer import Interrupted

    console = output()
    with progress_bar() as progress:
        task = progress.add_task("", total=None, note="")

        shown = ""

        def report(stage: str, done: int, total: int, record: dict[str, Any] | None = None) -> None:
            nonlocal shown
            if progress.disable and stage != shown:
                shown = stage
                typer.echo(f"{stage} ...", err=True)
            progress.update(
                task, description=stage, completed=done, total=total, note="" if record is None else note(record)
            )

        try:
            outcome = run(out, updates, report)
        except Interrupted as interrupted:
            progress.stop()
            typer.echo(f"interrupted; saved. Go on with: solm quickstart --out {out}", err=True)
            raise typer.Exit(interrupted.exit_code) from None
        progress.update(task, description="done", note="")
    console.print(show.table(outcome.result))
    for line in show.verdict(outcome.result):
        console.print(line)
    for budget, reply in outcome.replies.items():
        console.print(f"\nbudget {budget}, realised {reply.compute.realised['net']:.3f}:")
        colour = console.is_terminal
        print("".join(paint(token.text, token.cost) if colour else token.text for token in reply.tokens))
    console.print(f"\nreport: {out / 'report.html'}\npolicy: {out / 'policy'}")
