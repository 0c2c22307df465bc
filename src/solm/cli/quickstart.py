"""`solm quickstart`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from solm.cli.options import output, progress_bar


def quickstart(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where everything is written.")] = Path("runs/quickstart"),
    batches: Annotated[int, typer.Option(help="Training batches, of about 8 seconds each on 2 cores.", min=1)] = 24,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Take the policy that ships with solm instead of training one.")
    ] = False,
) -> None:
    """Train, compare and use a policy for the embedded model, in minutes, on text that ships with Python.

    A second run goes on where the first stopped, or reuses what is there.

    Examples:

        solm quickstart

        solm quickstart --out /tmp/quick --batches 2      (a smoke test)

        solm quickstart --pretrained --out runs/pretrained
    """
    from solm.cli.generate import paint
    from solm.cli.train import note
    from solm.evaluation import show
    from solm.quickstart import PRETRAINED, run
    from solm.training.interrupt import Interrupted

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
            outcome = run(out, batches, report, pretrained)
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
    console.print(f"\nreport: {out / 'report.html'}\npolicy: {PRETRAINED if pretrained else out / 'policy'}")
