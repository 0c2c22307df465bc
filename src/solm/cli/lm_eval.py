"""`solm lm-eval`."""

import sys
from typing import Any

import typer

from solm.core.errors import SolmError

PASSED_ON: Any = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Typer leaves a command's arguments alone."""


def lm_eval(context: typer.Context) -> None:
    """lm-eval's own command line, with `--model solm` in its registry.

    \b
    Example:
      solm lm-eval run --model solm --tasks lambada_openai --limit 50 \\
        --model_args pretrained=builtin:smollm2-135m,policy=builtin:smollm2-135m,budget=keep=0.6
    """
    # lm-eval has no way to find model classes of other packages: ours is registered by its import.
    try:
        from lm_eval.__main__ import cli_evaluate

        import solm.evaluation.harness  # noqa: F401
    except ImportError as error:
        raise SolmError(f"this needs lm-eval ({error}); run: pip install '.[eval]' in a checkout of solm") from None
    sys.argv = ["solm lm-eval", *context.args]
    try:
        cli_evaluate()
    except ValueError as error:
        if not _is_mistake(error):
            raise
        raise SolmError(f"lm-eval: {error}") from error


def _is_mistake(error: ValueError) -> bool:
    """Whether lm-eval found it while it read its arguments; what is found later needs its traceback."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    where = "" if at is None else str(at.tb_frame.f_globals.get("__name__", ""))
    return where.startswith(("lm_eval._cli", "lm_eval.config"))
