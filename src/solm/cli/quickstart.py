"""`solm quickstart`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from solm.cli import checks
from solm.cli.options import DEFAULT_MODEL, JsonOption


def quickstart(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything that is made.")] = Path(
        "runs/quickstart"
    ),
    batches: Annotated[int, typer.Option(help="Training batches, of about 8 seconds each on 2 cores.", min=1)] = 24,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Take the policy that ships with solm instead of training one.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Train, compare and use a policy for the embedded model, in minutes, on text that ships with Python.

    A second run goes on where the first stopped, or reuses what is there.

    \b
    Examples:
      solm quickstart
      solm quickstart --pretrained --out runs/pretrained
      solm quickstart --out /tmp/quick --batches 2
    """
    from solm.cli.generate import paint
    from solm.cli.output import output, print_json, progress_bar, say
    from solm.cli.train import note
    from solm.evaluation import show
    from solm.quickstart import PRETRAINED, run
    from solm.training.interrupt import Interrupted

    checks.out_folder(out)
    checks.model_config(DEFAULT_MODEL)
    with progress_bar() as progress:

        def report(stage: str, done: int, total: int, record: dict[str, Any] | None = None) -> None:
            progress.show(stage, done, total, "" if record is None else note(record))

        try:
            outcome = run(out, batches, report, pretrained)
        except Interrupted as interrupted:
            progress.stop()
            say(f"interrupted; saved. Go on with: solm quickstart --out {out}")
            raise typer.Exit(interrupted.exit_code) from None
    made = {
        "report": str(out / "report.html"), "result": str(out / "result.json"), "replies": str(out / "replies.json"),
        "policy": PRETRAINED if pretrained else str(out / "policy"),
    }  # fmt: skip
    if json:
        print_json(made | {"verdict": show.verdict(outcome.result)})
        return
    console = output()
    console.print(show.table(outcome.result))
    for line in show.verdict(outcome.result):
        console.print(line)
    for budget, reply in outcome.replies.items():
        console.print(f"\nbudget {budget}, realised {reply.compute.realised['net']:.3f}:")
        colour = console.is_terminal
        print("".join(paint(token.text, token.cost) if colour else token.text for token in reply.tokens))
    console.print(f"\nreport: {made['report']}\npolicy: {made['policy']}")
