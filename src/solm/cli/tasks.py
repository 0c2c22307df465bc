"""`solm tasks` and `solm lm-eval`."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from solm.cli.options import (
    DEFAULT_MODEL,
    DtypeOption,
    ModelOption,
    PolicyOption,
    SeedOption,
    in_space,
    numbers,
    output,
    progress_bar,
    settings,
)
from solm.core.errors import SolmError


def tasks(
    tasks: Annotated[str, typer.Option("--tasks", "-t", help="Comma-separated names of lm-eval tasks.")],
    model: ModelOption = DEFAULT_MODEL,
    policy: PolicyOption = None,
    budgets: Annotated[str, typer.Option(help="Net keeps, fixed in advance.")] = "0.55,0.65,0.75,0.85",
    space: Annotated[
        str | None, typer.Option(help="Action space, such as joint-27; with a policy, one within its own.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(envvar="SOLM_DATA", help="Folder with local copies of the tasks' data; else from the hub."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Questions per task (per subject of mmlu); by default all.")] = None,
    fewshot: Annotated[int | None, typer.Option(help="Examples before each question; else as the task says.")] = None,
    batch: Annotated[int, typer.Option(help="Questions that share a pass.")] = 16,
    tuning: Annotated[str | None, typer.Option(help="Text to choose the arm tuned on.")] = None,
    seed: SeedOption = 0,
    dtype: DtypeOption = "auto",
    json: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Answer lm-eval tasks under a policy, and under dense, static and random schedules at the same compute.

    Examples:

        solm tasks -p builtin:smollm2-135m-joint-27 --tasks arc_easy,hellaswag --fewshot 5 --json tasks.json

        solm tasks --space joint-8 --tasks lambada_openai --budgets 0.7 --limit 200     (baselines alone)

        SOLM_DATA=data/eval solm tasks -p runs/a/policy --tasks mmlu --limit 20

    A budget holds over the questions of a task together: a question of one step has no average of its own. An
    interrupted run with --json goes on where it stopped.
    """
    import logging

    from solm.core.actions import ActionSpace
    from solm.core.files import resumable, write_text
    from solm.data.windows import token_stream
    from solm.evaluation.arms import tuned
    from solm.evaluation.show import task_table
    from solm.policies.artifact import TrainedPolicy
    from solm.runtime.load import load

    try:
        from solm.evaluation.local_tasks import load_tasks
        from solm.evaluation.tasks import TaskSettings, evaluate_tasks
    except ImportError as error:
        raise SolmError(f"tasks need lm-eval ({error}); run: pip install 'solm[eval]'") from None
    if policy is None and space is None:
        raise SolmError("give a policy to evaluate, or --space to compare the baselines alone")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    logging.getLogger("lm_eval.solm").setLevel(logging.WARNING)
    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    chosen = settings(
        TaskSettings, tasks=names, budgets=numbers(budgets, "--budgets"), limit=limit, fewshot=fewshot, batch=batch,
        seed=seed,
    )  # fmt: skip
    found = load_tasks(list(names), data)
    grid = None if space is None else ActionSpace.preset(space)
    trained = None if policy is None else in_space(TrainedPolicy.from_pretrained(policy), grid)
    lm = load(model, trained, dtype=dtype)
    assert lm.tokenizer is not None
    blind = {}
    if tuning is not None:
        blind["tuned"] = tuned(lm, token_stream(tuning.split(","), lm.tokenizer), grid or lm.space)
    with resumable(json) as partial, progress_bar() as progress:
        bar = progress.add_task("answering", total=None, note="")
        result = evaluate_tasks(
            lm, found, chosen, grid, blind, partial,
            lambda done, total: progress.update(bar, completed=done, total=total),
        )  # fmt: skip
        if json is not None:
            write_text(json, result.model_dump_json(indent=2) + "\n")
    output().print(task_table(result))


PASSED_ON: Any = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Typer leaves a command's arguments alone."""


def lm_eval(context: typer.Context) -> None:
    """lm-eval's own command line, with `--model solm` in its registry.

    lm-eval has no way to find model classes of other packages, so this command registers ours and hands everything
    after it on.

    Example:

        solm lm-eval run --model solm --tasks lambada_openai --limit 50
        --model_args pretrained=builtin:smollm2-135m,policy=builtin:smollm2-135m,budget=0.6
    """
    try:
        from lm_eval.__main__ import cli_evaluate

        import solm.evaluation.harness  # noqa: F401
    except ImportError as error:
        raise SolmError(f"this needs lm-eval ({error}); run: pip install 'solm[eval]'") from None
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.argv = ["solm lm-eval", *context.args]
    cli_evaluate()
