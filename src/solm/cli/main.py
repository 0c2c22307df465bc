"""The `solm` command."""

import io
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from solm.cli.bench import bench
from solm.cli.cache import cache
from solm.cli.chat import chat
from solm.cli.doctor import doctor
from solm.cli.eval import PASSED_ON, evaluate, lm_eval
from solm.cli.fit import fit
from solm.cli.generate import generate
from solm.cli.inspect import inspect
from solm.cli.options import verb
from solm.cli.output import Result
from solm.cli.policies import policies
from solm.cli.quickstart import quickstart
from solm.cli.serve import serve
from solm.core.errors import SolmError

app = typer.Typer(
    name="solm",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
VERBS: dict[str, Callable[..., Result | None]] = {
    "quickstart": quickstart, "generate": generate, "chat": chat, "serve": serve, "fit": fit, "eval": evaluate,
    "bench": bench, "inspect": inspect, "policies": policies, "cache": cache, "doctor": doctor,
}  # fmt: skip
MOVED = {
    "allocate": "solm fit finds an allocation for a model's layers and heads",
    "push": "run: solm policies push FOLDER REPOSITORY",
    "report": "solm eval writes a page with --out page.html",
    "study": "studies are scripts in evidence/studies of a checkout of solm",
    "sweep": "run solm eval once per model, policy and space; --budgets takes several",
    "tasks": "run: solm lm-eval run --model solm --tasks ...",
    "train": "solm fit makes a policy; python -m solm.paper trains one as the paper does",
}
"""Commands of earlier versions, and what to run instead."""
for name, function in VERBS.items():
    app.command(name)(verb(function))
app.command("lm-eval", context_settings=PASSED_ON)(lm_eval)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"solm {version('solm')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def solm(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A quality/compute dial, per token, for a frozen language model.

    \b
    Examples:
      solm generate --policy builtin:smollm2-135m-cpu --budget 0.9 "Why is the sky blue?"
      solm chat --policy builtin:smollm2-135m-cpu
      solm serve --policy builtin:smollm2-135m-cpu
      solm doctor
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Run the command line. A user's mistake is one line on standard error; exit code 2, or 3 for a damaged file."""
    # Parallel tokenizers warn on every fork that follows; texts are short.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if isinstance(sys.stdin, io.TextIOWrapper):  # other bytes are read as Python reads arguments; commands check them
        sys.stdin.reconfigure(errors="surrogateescape")
    try:
        if (name := "".join(sys.argv[1:2])) in MOVED:
            raise SolmError(f"there is no command {name} any more: {MOVED[name]}")
        code = app(standalone_mode=False, prog_name="solm")
        sys.exit(code)
    except TyperException as error:
        print(f"solm: {_usage(error)}", file=sys.stderr)
        sys.exit(2)
    except SolmError as error:
        print(f"solm: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("solm: interrupted", file=sys.stderr)
        sys.exit(130)


def _usage(error: Any) -> str:
    """A mistake in the arguments themselves, in one line."""
    parameter, context = getattr(error, "param", None), getattr(error, "ctx", None)
    text = " ".join(error.format_message().split()).rstrip(".")
    if parameter is not None:
        name = max(parameter.opts, key=len) if parameter.param_type_name == "option" else parameter.name.upper()
        text = f"{name}: {error.message.rstrip('.') or 'it is missing'}"
    return text if context is None else f"{text} (see {context.command_path} --help)"
