"""`solm tasks` and `solm lm-eval`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from solm.cli import checks
from solm.cli.budget_lists import net_keep_list
from solm.cli.options import (
    DEFAULT_MODEL,
    BudgetsOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    PolicyOption,
    RevisionOption,
    SeedOption,
    SpaceOption,
    TrustOption,
)
from solm.cli.sources import one_stream, read_sources
from solm.core.errors import SolmError


def tasks(
    tasks: Annotated[str, typer.Option("--tasks", "-t", help="Names of lm-eval tasks, separated by commas.")],
    model: ModelOption = DEFAULT_MODEL,
    policy: PolicyOption = None,
    budgets: BudgetsOption = "0.55,0.65,0.75,0.85",
    space: SpaceOption = None,
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
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the result here, as JSON.")] = None,
    json: JsonOption = False,
) -> None:
    """Answer lm-eval tasks under a policy, and under dense, static and random policies at the same compute.

    A budget holds over the questions of a task together: a question of one step has no average of its own. An
    interrupted run with --out goes on where it stopped.

    \b
    Examples:
      solm tasks --policy builtin:smollm2-135m-joint-27 --tasks arc_easy,hellaswag --fewshot 5 --out tasks.json
      solm tasks --space joint-8 --tasks lambada_openai --budgets 0.7 --limit 200
      SOLM_DATA=data/eval solm tasks --policy builtin:smollm2-135m --tasks mmlu --limit 20
    """
    import logging

    from solm.cli.output import output, print_json, progress_bar
    from solm.core.files import resumable, write_text
    from solm.evaluation.arms import tuned
    from solm.evaluation.show import task_table
    from solm.runtime.load import load

    try:
        from solm.evaluation.local_tasks import load_tasks
        from solm.evaluation.tasks import TaskSettings, evaluate_tasks
    except ImportError as error:
        raise SolmError(f"tasks need lm-eval ({error}); run: pip install 'solm[eval]'") from None
    if policy is None and space is None:
        raise SolmError("--policy: give a policy to evaluate, or --space to compare the baselines alone")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    checks.out_file(out)
    checks.backend("torch", None, None, dtype)
    grid = checks.space_of(space)
    config = checks.model_config(model, revision, trust_remote_code)
    trained = checks.trained_policy(policy, config, grid)
    offered = trained.config.space if trained is not None else grid
    assert offered is not None
    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    chosen = checks.settings(
        TaskSettings, tasks=names, budgets=net_keep_list(budgets, offered), limit=limit, fewshot=fewshot,
        batch=batch, seed=seed,
    )  # fmt: skip
    with checks.option("--tasks" if data is None else "--data" if not data.is_dir() else "--tasks"):
        found = load_tasks(list(names), data)
    sources = None if tuning is None else read_sources(tuning, "--tuning")
    lm = load(
        model, trained, tokenizer=checks.tokenizer(model, revision, trust_remote_code), dtype=dtype, backend="torch",
        revision=revision, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    stream = one_stream(sources, lm.tokenizer)
    blind = {} if stream is None else {"tuned": tuned(lm, stream, offered)}
    with resumable(out) as partial, progress_bar() as progress:
        result = evaluate_tasks(
            lm, found, chosen, grid, blind, partial, lambda done, total: progress.show("answering", done, total)
        )
        if out is not None:
            write_text(out, result.model_dump_json(indent=2) + "\n")
    if json:
        print_json(result.model_dump(mode="json"))
        return
    output().print(task_table(result))


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
        raise SolmError(f"this needs lm-eval ({error}); run: pip install 'solm[eval]'") from None
    sys.argv = ["solm lm-eval", *context.args]
    cli_evaluate()
