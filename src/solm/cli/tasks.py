"""`solm tasks` and `solm lm-eval`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from solm.cli import checks
from solm.cli.budget_lists import asked_budgets, reachable
from solm.cli.options import (
    DEFAULT_MODEL,
    BackendOption,
    DtypeOption,
    JsonOption,
    KvCacheOption,
    ModelOption,
    PolicyOption,
    PrecisionOption,
    RevisionOption,
    RunSeedOption,
    SpaceOption,
    TimingsOption,
    TrustOption,
)
from solm.cli.sources import long_enough, one_stream, read_sources
from solm.core.errors import SolmError


def tasks(
    tasks: Annotated[str, typer.Option("--tasks", "-t", help="Names of lm-eval tasks, separated by commas.")],
    model: ModelOption = DEFAULT_MODEL,
    policy: PolicyOption = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            help="As for solm eval: with step times (the policy's, or --timings) shares of the dense step's "
            "milliseconds, speed=..., ms=..., loss=... or auto; else net keeps. By default auto with step times, else "
            "0.55,0.65,0.75,0.85."
        ),
    ] = None,
    timings: TimingsOption = None,
    space: SpaceOption = None,
    data: Annotated[
        Path | None,
        typer.Option(envvar="SOLM_DATA", help="Folder with local copies of the tasks' data; without it, the hub's."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Questions per task (per subject of mmlu); by default all.")] = None,
    fewshot: Annotated[
        int | None, typer.Option(help="Examples before each question; by default the task's own number.")
    ] = None,
    control: Annotated[
        str,
        typer.Option(
            help="answer: prompts are read densely, and only answers are under the budget. question: the tokens of "
            "a question are, too; only the examples that all questions of a task begin with are read densely."
        ),
    ] = "answer",
    context: Annotated[int, typer.Option(help="Context length for which budgets in time are computed.")] = 512,
    batch: Annotated[int, typer.Option(help="Questions that are scored together.")] = 16,
    tuning: Annotated[str | None, typer.Option(help="Text that the baseline tuned is fitted to.")] = None,
    seed: RunSeedOption = 0,
    dtype: DtypeOption = "auto",
    backend: BackendOption = "torch",
    precision: PrecisionOption = None,
    kv_cache_dtype: KvCacheOption = None,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the result here, as JSON.")] = None,
    json: JsonOption = False,
) -> None:
    """Answer lm-eval tasks with dense steps, under a policy, and under other schedules at the policy's compute.

    The others are uniform and allocated; random for net keeps, constant for budgets in time, and tuned with --tuning.

    A budget is met over all answers of a task together, because an answer may be a single step. With --control question
    it is met for every question. An interrupted run with --out continues where it stopped.

    \b
    Examples:
      solm tasks --policy builtin:smollm2-135m --space joint-27 --tasks arc_easy --fewshot 5 --out tasks.json
      solm tasks --space joint-8 --tasks lambada_openai --budgets 0.7 --limit 200
      SOLM_DATA=data/eval solm tasks --policy builtin:smollm2-135m --tasks mmlu --limit 20
      solm tasks --model qwen.gguf --backend cpu --policy auto --tasks mmlu --fewshot 5 --limit 18 --control question
    """
    import logging

    from solm.cli.output import output, print_json, progress_bar, say
    from solm.core.files import resumable, write_text
    from solm.evaluation.arms import TUNING_LENGTH, Arm, tuned
    from solm.evaluation.baselines import BaselineRequest, constant
    from solm.evaluation.show import never_acted, task_table
    from solm.runtime.load import engine_sparsity, load
    from solm.runtime.offer import Offer

    try:
        from solm.evaluation.local_tasks import load_tasks
        from solm.evaluation.tasks import TaskSettings, check_examples, evaluate_tasks
    except ImportError as error:
        raise SolmError(f"tasks need lm-eval ({error}); run: pip install '.[eval]' in a checkout of solm") from None
    if policy is None and space is None:
        raise SolmError("--policy: give a policy to evaluate, or --space to compare the baselines alone")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    checks.out_file(out)
    checks.backend(backend, precision, kv_cache_dtype, dtype)
    grid = checks.space_of(space)
    config = checks.model_config(model, revision, trust_remote_code, backend=backend)
    trained = checks.trained_policy(policy, config, grid)
    offered = trained.config.space if trained is not None else grid
    assert offered is not None
    asked, known = asked_budgets(budgets, "0.55,0.65,0.75,0.85", timings, trained, model, backend)
    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    chosen = checks.settings(
        TaskSettings, tasks=names, budgets=asked.values or (1.0,), limit=limit, fewshot=fewshot, batch=batch,
        seed=seed, context=context, control=control, currency="time" if asked.in_time else "keep",
    )  # fmt: skip

    def with_budgets(offer: Offer) -> TaskSettings:
        return chosen.model_copy(update={"budgets": reachable(asked, offer, chosen.context)})

    # A first check: the exact lowest budget is known once the model is loaded.
    with_budgets(Offer(offered, engine_sparsity(trained), config.shapes, trained, 0, known))
    with checks.option("--tasks" if data is None else "--data" if not data.is_dir() else "--tasks"):
        found = load_tasks(list(names), data)
    with checks.option("--fewshot"):
        check_examples(found, fewshot)
    sources = None if tuning is None else read_sources(tuning, "--tuning")
    long_enough(sources or [], chosen.context + TUNING_LENGTH + 1, "--tuning")
    lm = load(
        model, trained, tokenizer=checks.tokenizer(model, revision, trust_remote_code), dtype=dtype, backend=backend,
        precision=precision, kv_cache_dtype=kv_cache_dtype, timings=timings, revision=revision,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    chosen = with_budgets(lm.offer(lm.policy("static", offered)))
    stream = one_stream(sources, lm.tokenizer)
    rivals = {} if stream is None else {"tuned": Arm(tuned(lm, stream, offered, chosen.context, seed=seed))}
    if asked.in_time:
        rivals["constant"] = constant(BaselineRequest(lm, offered))
    with resumable(out) as partial, progress_bar() as progress:
        result = evaluate_tasks(
            lm, found, chosen, grid, rivals, partial, lambda done, total: progress.show("answering", done, total),
            tuning=stream,
        )  # fmt: skip
        if out is not None:
            write_text(out, result.model_dump_json(indent=2) + "\n")
    for line in never_acted(result):
        say(line)
    if json:
        print_json(result.model_dump(mode="json"))
        return
    console = output()
    console.print(task_table(result, console.width))


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
