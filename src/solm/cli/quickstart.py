"""`solm quickstart`."""

import importlib.util
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from solm.cli import checks
from solm.cli.options import DEFAULT_MODEL, JsonOption
from solm.core.errors import SolmError

if TYPE_CHECKING:
    from solm.evaluation.speeds import Speeds
    from solm.quickstart import Outcome

_INTERRUPTED = 130
_BATCHES = 3


def quickstart(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything that is made.")] = Path(
        "runs/quickstart"
    ),
    batches: Annotated[int, typer.Option(help="Training batches; more of them take longer.", min=1)] = _BATCHES,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Use the policy that comes with solm instead of training one.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Decode under budgets; then train, compare and use a policy for the embedded model, in minutes.

    A second run continues where the first stopped, and reuses what is finished.

    \b
    Examples:
      solm quickstart
      solm quickstart --pretrained --out runs/pretrained
      solm quickstart --out /tmp/quick --batches 2
    """
    from solm.cli.output import print_json, progress_bar, say
    from solm.core.interrupt import Interrupted

    if importlib.util.find_spec("matplotlib") is None:
        raise SolmError("the report needs matplotlib; run: pip install '.[eval]' in a checkout of solm")
    checks.out_folder(out)
    checks.model_config(DEFAULT_MODEL)
    training = "no training" if pretrained else f"a small training ({batches} batches)"
    say(
        "1. One prompt, dense and under two budgets, on this machine: about a minute at the first run.\n"
        f"2. {training[0].upper()}{training[1:]} and a comparison on held-out text: a few minutes.\n"
        "3. A summary and a report. After Ctrl-C the same command continues; finished parts are kept.\n"
    )
    try:
        from solm import quickstart as job

        clock = job.Clock()
        with progress_bar() as progress:
            speeds = job.decode(out, progress.show, clock)
        if not json:
            _show_speeds(speeds)
        with progress_bar() as progress:

            def report(stage: str, done: int, total: int | None, record: dict[str, Any] | None = None) -> None:
                progress.show(stage, done, total, "" if record is None else note(record))

            outcome = job.run(out, speeds, batches, report, clock, pretrained)
    except (Interrupted, KeyboardInterrupt) as interrupted:
        say(f"interrupted; finished parts are kept. Continue with: {shlex.join(['solm', *sys.argv[1:]])}")
        raise typer.Exit(getattr(interrupted, "exit_code", _INTERRUPTED)) from None
    made = {
        "report": str(out / "report.html"), "speeds": str(out / "speeds.json"), "result": str(out / "result.json"),
        "replies": str(out / "replies.json"), "policy": job.PRETRAINED if pretrained else str(out / "policy"),
    }  # fmt: skip
    if json:
        from solm.evaluation.report.quickstart import summary

        told = {"summary": summary(speeds, outcome.result), "seconds": outcome.seconds}
        print_json(made | told | {"decoded": speeds.as_dict()["found"]})
        return
    _show_comparison(speeds, outcome)
    print(f"\nreport: {made['report']}\npolicy: {made['policy']}")
    print(f"Next: solm chat --policy {job.FAST_POLICY} --budget 0.9")


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
        console.print(f"\n{one.name}{told}:\n{one.text.strip()}", markup=False)
    console.print()


def _show_comparison(speeds: "Speeds", outcome: "Outcome") -> None:
    """What was measured, the table, a reply, what it all says, and how long it took."""
    from rich.table import Table

    from solm.cli.generate import paint
    from solm.cli.output import output
    from solm.evaluation import show
    from solm.evaluation.report.quickstart import seconds_table, summary, why_more

    console, result = output(), outcome.result
    console.print(f"\nMeasured: perplexity on {show.measured(result)}\n", markup=False)
    console.print(show.table(result, console.width))
    for net, reply in outcome.replies.items():
        why = why_more(result, net, reply)
        console.print(
            f"\nnet keep {net:.2f}, realised {reply.compute.realised['net']:.3f}{f' ({why})' if why else ''}:"
        )
        colour = console.is_terminal
        print("".join(paint(token.text, token.cost) if colour else token.text for token in reply.tokens))
    took = Table("stage", "seconds", title="\nWhat it took", title_justify="left")
    took.columns[1].justify = "right"
    for row in seconds_table(outcome.seconds):
        took.add_row(*row)
    console.print(took)
    console.print()
    for line in summary(speeds, result):
        console.print(line, markup=False)


def note(record: dict[str, Any]) -> str:
    """One line about a batch of training."""
    speed = f"{record['token_steps_per_second']:.0f} token-steps/s"
    return f"mean cost {record['cost']:.3f} dense ppl {record['perplexity']:.1f} {speed}"
