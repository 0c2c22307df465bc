"""`solm quickstart`."""

import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import typer

from solm.cli import checks
from solm.cli.generate import paint
from solm.cli.options import DEFAULT_MODEL
from solm.cli.output import Progress, output, print_json, say, table
from solm.core.errors import SolmError

_INTERRUPTED = 130


def quickstart(
    out: Path = Path("runs/quickstart"), minutes: float = 1.75, pretrained: bool = False, json: bool = False
) -> None:
    """Decode under budgets; then fit, compare and use a policy for the embedded model, in minutes.

    A second run continues an interrupted fit, and reuses a finished one.

    \b
    Examples:
      solm quickstart
      solm quickstart --pretrained
      solm quickstart --out /tmp/quick --minutes 4

    Args:
        out: Folder for the fit.
        minutes: Minutes of the fit; more of them measure more.
        pretrained: Use the policy that comes with solm instead of fitting one.
    """
    from solm.backends.names import gguf_of
    from solm.core.interrupt import Interrupted

    if not 0 < minutes <= 10_000:
        raise SolmError(f"--minutes: {minutes:g} is out of range: it must be above 0 and at most 10000")
    checks.out_folder(out)
    gguf_of(DEFAULT_MODEL)  # refuses where it is not installed and cannot be downloaded
    say(
        "1. One prompt, dense and under two budgets, on this machine: about half a minute, and a minute at first.\n"
        f"2. {'No fit' if pretrained else f'A fit of about {minutes:g} minutes, with a comparison on held-out text'}.\n"
        "3. A reply and a summary. After Ctrl-C the same command continues.\n"
    )
    console, result, policy = output(), None, None
    try:
        from solm import quickstart as job

        with Progress() as progress:
            speeds = job.decode(progress.show)
        if not json:
            dense = speeds.replies[0]
            title = f"\nAfter {speeds.prompt:,} tokens, on {speeds.machine}"
            console.print(table(title, job.COLUMNS, (one.cells(dense) for one in speeds.replies)))
            console.print(f"\nAsked: {job.QUESTION}", markup=False)
            for one in speeds.replies:
                differs = one.difference(dense)
                console.print(f"\n{one.name}{f' ({differs})' if differs else ''}:\n{one.text.strip()}", markup=False)
            console.print()
        with Progress() as progress:
            if not pretrained:
                try:
                    result = job.fitted(out / "fit", minutes, progress.show, say)
                    policy = str(out / "fit" / "policy")
                except SolmError as error:  # such as on a machine so busy that steps of all levels take the same time
                    say(f"the fit failed: {error}\nThe reply is by the policy that comes with solm")
            policy = policy or job.SHIPPED
            reply = job.answered(policy, progress.show)
    except (Interrupted, KeyboardInterrupt) as interrupted:
        say(f"interrupted; finished parts are kept. Continue with: {shlex.join(['solm', *sys.argv[1:]])}")
        raise typer.Exit(getattr(interrupted, "exit_code", _INTERRUPTED)) from None
    lines = job.summary(speeds, result)
    if json:
        print_json({"policy": policy, "speeds": asdict(speeds), "reply": reply.as_dict(), "summary": lines})
        return
    if result is not None:
        from solm.evaluation import show

        console.print(show.table(result, console.width))
    console.print(f"\n{job.PROMPT}", markup=False)
    colour = console.is_terminal
    print("".join(paint(token.text, token.cost) if colour else token.text for token in reply.tokens))
    console.print()
    for line in lines:
        console.print(line, markup=False)
    print(f"\npolicy: {policy}")
    print(f"Next: solm chat --policy {job.SHIPPED} --budget 0.9")
