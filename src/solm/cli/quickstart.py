"""`solm quickstart`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from solm.cli import checks
from solm.cli.options import DEFAULT_MODEL, JsonOption

if TYPE_CHECKING:
    from solm.evaluation.speeds import Speeds
    from solm.quickstart import Outcome

_INTERRUPTED = 130


def quickstart(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything that is made.")] = Path(
        "runs/quickstart"
    ),
    batches: Annotated[int, typer.Option(help="Training batches, of about 8 seconds each on 2 cores.", min=1)] = 10,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Take the policy that ships with solm instead of training one.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Decode fast under a budget; then train, compare and use a policy for the embedded model, in minutes.

    A second run goes on where the first stopped, or reuses what is there.

    \b
    Examples:
      solm quickstart
      solm quickstart --pretrained --out runs/pretrained
      solm quickstart --out /tmp/quick --batches 2
    """
    from solm import quickstart as job
    from solm.cli.output import print_json, progress_bar, say
    from solm.cli.train import note
    from solm.evaluation import show
    from solm.training.interrupt import Interrupted

    checks.out_folder(out)
    checks.model_config(DEFAULT_MODEL)
    say(
        "1. one prompt, dense and under two budgets (less than a minute)\n"
        f"2. {'no training' if pretrained else f'a small training ({batches} batches)'}, and a comparison on held-out "
        "text\nAll of it takes about 5 minutes on 2 cores. Ctrl-C loses nothing that is finished."
    )
    try:
        with progress_bar() as progress:
            speeds = job.decode(out, progress.show)
        if not json:
            _show_speeds(speeds)
        with progress_bar() as progress:

            def report(stage: str, done: int, total: int | None, record: dict[str, Any] | None = None) -> None:
                progress.show(stage, done, total, "" if record is None else note(record))

            outcome = job.run(out, speeds, batches, report, pretrained)
    except (Interrupted, KeyboardInterrupt) as interrupted:
        options = [f"--out {out}", *([f"--batches {batches}"] if batches != job.BATCHES else [])]
        again = " ".join(["solm quickstart", *options, *(["--pretrained"] if pretrained else [])])
        say(f"interrupted; what is finished is kept. Go on with: {again}")
        raise typer.Exit(getattr(interrupted, "exit_code", _INTERRUPTED)) from None
    made = {
        "report": str(out / "report.html"), "speeds": str(out / "speeds.json"), "result": str(out / "result.json"),
        "replies": str(out / "replies.json"), "policy": job.PRETRAINED if pretrained else str(out / "policy"),
    }  # fmt: skip
    if json:
        print_json(made | {"verdict": show.verdict(outcome.result), "decoded": speeds.as_dict()["decoded"]})
        return
    _show_comparison(outcome)
    print(f"\nreport: {made['report']}\npolicy: {made['policy']}")


def _show_speeds(speeds: "Speeds") -> None:
    """The table of speeds, the texts and how they differ."""
    from solm.cli.output import output
    from solm.evaluation.speeds import difference, table

    console = output()
    console.print()
    console.print(table(speeds))
    if speeds.note:
        console.print(speeds.note, markup=False)
    console.print(f"\nAsked: {speeds.question}", markup=False)
    for one in speeds.found:
        told = "" if one.budget is None else f" ({difference(speeds, one)})"
        console.print(f"\n{one.name}{told}:\n{one.reply.text.strip()}", markup=False)
    console.print()


def _show_comparison(outcome: "Outcome") -> None:
    """What was measured, the table, what it says, and what the policy's replies look like."""
    from solm.cli.generate import paint
    from solm.cli.output import output
    from solm.evaluation import show

    console, result = output(), outcome.result
    console.print(f"\nMeasured: perplexity on {show.measured(result)}\n", markup=False)
    console.print(show.table(result))
    for line in [*show.cost(result), *show.verdict(result)]:
        console.print(line, markup=False)
    for budget, reply in outcome.replies.items():
        console.print(f"\nbudget {budget}, realised {reply.compute.realised['net']:.3f}:")
        colour = console.is_terminal
        print("".join(paint(token.text, token.cost) if colour else token.text for token in reply.tokens))
