"""The `solm` command."""

import sys

import typer

from solm.cli.allocate import allocation
from solm.cli.bench import bench
from solm.cli.eval import evaluate
from solm.cli.generate import generate
from solm.cli.inspect import inspect
from solm.cli.push import push
from solm.cli.quickstart import quickstart
from solm.cli.serve import serve
from solm.cli.study import studies
from solm.cli.sweep import report, sweep
from solm.cli.tasks import PASSED_ON, lm_eval, tasks
from solm.cli.train import train
from solm.core.errors import SolmError

app = typer.Typer(
    name="solm",
    help="A quality/compute dial, per token, for a frozen language model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("quickstart")(quickstart)
app.command("allocation")(allocation)
app.command("train")(train)
app.command("eval")(evaluate)
app.command("tasks")(tasks)
app.command("lm-eval", context_settings=PASSED_ON)(lm_eval)
app.command("sweep")(sweep)
app.command("report")(report)
app.add_typer(studies, name="study")
app.command("generate")(generate)
app.command("bench")(bench)
app.command("serve")(serve)
app.command("inspect")(inspect)
app.command("push")(push)


def main() -> None:
    """Run the command line. A user's mistake is one line on stderr; exit code 2, or 3 for a damaged file."""
    try:
        app()
    except SolmError as error:
        print(f"solm: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("solm: interrupted", file=sys.stderr)
        sys.exit(130)
