"""`solm quickstart`."""

import importlib.util
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from solm.cli import checks
from solm.cli.options import DEFAULT_MODEL
from solm.cli.output import Progress, output, print_json, say, table
from solm.core.errors import SolmError

if TYPE_CHECKING:
    from solm.quickstart import Speeds

_INTERRUPTED = 130


def quickstart(
    out: Path = Path("runs/quickstart"), minutes: float = 1.75, pretrained: bool = False, json: bool = False
) -> None:
    """Decode under budgets; then fit, compare and use a policy for the embedded model, in minutes.

    A second run continues where the first stopped, and reuses a finished fit.

    \b
    Examples:
      solm quickstart
      solm quickstart --pretrained --out runs/pretrained
      solm quickstart --out /tmp/quick --minutes 4

    Args:
        out: Folder for everything that is made.
        minutes: Minutes of the fit; more of them measure more.
        pretrained: Use the policy that comes with solm instead of fitting one.
    """
    from solm.backends.names import gguf_of
    from solm.cli.generate import paint
    from solm.core.interrupt import Interrupted

    if importlib.util.find_spec("matplotlib") is None:
        raise SolmError("the report needs matplotlib; run: pip install '.[eval]' in a checkout of solm")
    if not 0 < minutes <= 10_000:
        raise SolmError(f"--minutes: {minutes:g} is out of range: it must be above 0 and at most 10000")
    checks.out_folder(out)
    gguf_of(DEFAULT_MODEL)  # refuses where it is not installed and cannot be downloaded
    say(
        "1. One prompt, dense and under two budgets, on this machine: about half a minute, and a minute at first.\n"
        f"2. {'No fit' if pretrained else f'A fit of about {minutes:g} minutes, with a comparison on held-out text'}.\n"
        "3. A reply, a summary and a report. After Ctrl-C the same command continues.\n"
    )
    try:
        from solm import quickstart as job

        clock, result = job.Clock(), None
        with Progress() as progress:
            speeds = job.decode(out, progress.show, clock)
        if not json:
            _show_speeds(speeds)
        with Progress() as progress:
            if not pretrained:
                try:
                    result = job.fitted(out, minutes, progress.show, say, clock)
                except SolmError as error:  # such as on a machine so busy that steps of all levels take the same time
                    pretrained = True
                    say(f"the fit failed: {error}\nThe report is about the policy that comes with solm")
            reply = job.report(out, speeds, result, progress.show, clock)
    except (Interrupted, KeyboardInterrupt) as interrupted:
        say(f"interrupted; finished parts are kept. Continue with: {shlex.join(['solm', *sys.argv[1:]])}")
        raise typer.Exit(getattr(interrupted, "exit_code", _INTERRUPTED)) from None
    made = {
        "report": str(out / "report.html"), "speeds": str(out / "speeds.json"), "reply": str(out / "reply.json"),
        "policy": job.SHIPPED if pretrained else str(out / "fit" / "policy"),
    }  # fmt: skip
    lines = job.summary(speeds, result)
    if json:
        print_json(made | {"summary": lines, "seconds": clock.seconds})
        return
    from solm.evaluation import show

    console = output()
    if result is not None:
        console.print(show.table(result, console.width))
    console.print(f"\n{job.PROMPT}", markup=False)
    colour = console.is_terminal
    print("".join(paint(token.text, token.cost) if colour else token.text for token in reply.tokens))
    took = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in clock.seconds.items())
    console.print(f"\nSeconds: {took}, all {sum(clock.seconds.values()):.0f}")
    for line in lines:
        console.print(line, markup=False)
    print(f"\nreport: {made['report']}\npolicy: {made['policy']}")
    print(f"Next: solm chat --policy {job.SHIPPED} --budget 0.9")


def _show_speeds(speeds: "Speeds") -> None:
    """The table of speeds, the texts and how they differ."""
    from solm.quickstart import COLUMNS, QUESTION

    console, dense = output(), speeds.replies[0]
    title = f"\nAfter {speeds.prompt:,} tokens, on {speeds.machine}"
    console.print(table(title, COLUMNS, (one.cells(dense) for one in speeds.replies)))
    console.print(f"\nAsked: {QUESTION}", markup=False)
    for one in speeds.replies:
        differs = one.difference(dense)
        console.print(f"\n{one.name}{f' ({differs})' if differs else ''}:\n{one.text.strip()}", markup=False)
    console.print()
