"""`solm eval` and `solm lm-eval`."""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from solm.cli import checks
from solm.cli.options import ModelOptions, Seed
from solm.cli.output import Progress, Result, output, read_weights
from solm.core.errors import BudgetError, SolmError, argument

if TYPE_CHECKING:
    from solm.core.budget import Budgets

_NET_KEEPS = "0.55,0.65,0.75"
_PARTS = 10_000
"""Of a share, to which speeds, milliseconds and losses are rounded up."""


def evaluate(
    data: str,
    model: ModelOptions = ModelOptions(backend="torch"),
    policy: str | None = None,
    budgets: str | None = None,
    timings: Path | None = None,
    texts: int = 64,
    context: int = 512,
    length: int = 128,
    space: str | None = None,
    baselines: str | None = None,
    tuning: str | None = None,
    seed: Seed = 0,
    out: list[Path] | None = None,
) -> Result:
    """Compare a policy with dense steps, and with uniform, allocated, random and other schedules at equal compute.

    All of them spend on every axis what the policy spends.

    An interrupted evaluation with --out of a .json file continues where it stopped.

    \b
    Examples:
      solm eval --policy builtin:smollm2-135m-cpu --data pydoc:heldout --out result.json --out page.html
      solm eval --space joint-27 --data wiki.txt --budgets 0.6
      solm eval --policy builtin:smollm2-135m-cpu --data wiki.txt --baselines teal --tuning pydoc
      solm eval --model qwen.gguf --backend cpu --policy runs/qwen/policy --data wiki.txt --budgets auto

    Args:
        budgets: Such as 0.7,0.8, or auto: five between the lowest and 1. With step times (the policy's or --timings)
            numbers are shares of the dense step's milliseconds, and speed=1.2,speed=1.4, ms=8 and loss=0.05 work; else,
            and as keep=0.6,keep=0.7, net keeps. By default auto with step times, else 0.55,0.65,0.75.
        texts: Number of texts.
        context: Tokens read densely before the controlled ones.
        length: Controlled tokens per text that are scored.
        space: Action space, such as joint-27; with a policy, one within the policy's own.
        baselines: More baselines, separated by commas: constant (always there for budgets in time), random (always
            there for net keeps), teal, upper-bits.
        tuning: Text that thresholds of teal are measured on; not the text that is evaluated.
        out: Write the result (.json) or a page about it (.html) here; may be repeated.
    """
    from solm.core.actions import ActionSpace
    from solm.core.files import resumable, write_text
    from solm.evaluation import show
    from solm.evaluation.arms import BASELINES, BaselineRequest
    from solm.evaluation.perplexity import EvaluationSettings
    from solm.evaluation.perplexity import evaluate as run
    from solm.evaluation.texts import stream_of

    if policy is None and space is None:
        raise SolmError("--policy: give a policy to evaluate, or --space to compare the baselines alone")
    for path in out or ():
        if path.suffix not in (".json", ".html"):
            raise SolmError(f"--out: {path} is neither .json nor .html")
        checks.out_file(path)
    names = [item.strip() for item in (baselines or "").split(",") if item.strip()]
    for name in names:
        if name not in BASELINES:
            raise SolmError(f"--baselines: unknown baseline {name!r}; choose among {', '.join(BASELINES)}")
    with argument("space"):
        grid = None if space is None else ActionSpace.preset(space)
    prepared = model.prepare(policy, timings)
    if prepared.trained is not None and grid is not None:
        with argument("space"):
            prepared.trained = prepared.trained.with_space(grid)
    trained = prepared.trained
    if "teal" in names and tuning is None and (trained is None or trained.config.sparsity.thresholds is None):
        raise SolmError("--baselines: teal needs text to calibrate its thresholds on; give --tuning")
    if "upper-bits" in names and prepared.how.bits_site != "weights":
        raise SolmError("--baselines: upper-bits needs a policy that chooses weight bits")
    met = prepared.budgets(grid)
    with argument("budgets"):
        values, timed = _values(budgets, met, context + length // 2)
    chosen = checks.settings(
        EvaluationSettings, budgets=values, texts=texts, context=context, length=length, seed=seed,
        currency="time" if timed else "keep",
    )  # fmt: skip
    with argument("length"):
        prepared.check_room(context + length)
    sources = checks.read_sources(data, context + length + 1)
    fitted = [] if tuning is None else checks.read_sources(tuning, context + length + 1, "tuning")
    lm = read_weights(prepared)
    tokens = checks.streams(sources, lm.tokenizer)
    calibration = None
    if tuning is not None:
        calibration = stream_of([text for _, found in fitted for text in found], lm.tokenizer, tuning)
    arms = dict.fromkeys(["constant" if timed else "random", *names])
    rivals = {name: BASELINES[name](BaselineRequest(lm, met.space, calibration, context, seed)) for name in arms}
    with (
        resumable(next((path for path in out or () if path.suffix == ".json"), None)) as partial,
        Progress() as bar,
    ):
        result = run(
            lm, tokens, chosen, grid, partial, lambda done, total: bar.show("evaluating", done, total), rivals,
        )  # fmt: skip
        for path in out or ():
            told = result.model_dump_json(indent=2) + "\n"
            write_text(path, told if path.suffix == ".json" else show.page([(path.stem, result)]))
    table = show.table(result, output().width)
    return Result(result.model_dump(mode="json"), [table, *show.verdict(result)])


def _values(text: str | None, met: "Budgets", context: int) -> tuple[tuple[float, ...], bool]:
    """The budgets of --budgets, and whether they are shares of the dense step's milliseconds, where steps see `context`
    tokens; else they are net keeps. ``auto`` is five between the lowest and 1.

    Raises `BudgetError` for a list that cannot be read or mixes units, and for a budget that cannot be met.
    """
    from solm.core.budget import BudgetRequest
    from solm.core.curve import spaced_budgets

    measured = met.timings is not None
    text = (text or ("auto" if measured else _NET_KEEPS)).strip()
    if text == "auto":
        return spaced_budgets(met.time_floor(context) if measured else met.lowest_net), measured
    requests = [BudgetRequest.parse(part.strip()) for part in text.split(",")]
    kinds = {request.kind for request in requests}
    if len(kinds) > 1 or "shares" in kinds:
        raise BudgetError(f"{text!r} is no list of budgets in one unit: shares, or all as keep=, speed=, ms= or loss=")
    timed = kinds <= {"speed", "ms", "loss"} or (kinds == {"compute"} and measured)
    values: list[float] = []
    for request in requests:
        value = request.value
        assert isinstance(value, float)
        if timed:
            met.budget(request, context)
            if request.kind != "compute":
                share = max(met.time_floor(context), met.time_share(request, context))
                value = math.ceil(_PARTS * share) / _PARTS
        else:
            met.of_net(value)
        if value in values:
            raise BudgetError(f"budget {request} comes down to {value:g}, as another does")
        values.append(value)
    return tuple(values), timed


PASSED_ON: Any = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Typer leaves a command's arguments alone."""


def lm_eval(context: typer.Context) -> None:
    """lm-eval's own command line, with `--model solm` in its registry.

    \b
    Example:
      solm lm-eval run --model solm --tasks lambada_openai --limit 50 \\
        --model_args pretrained=builtin:smollm2-135m,policy=builtin:smollm2-135m-cpu,budget=keep=0.6
    """
    # lm-eval has no way to find model classes of other packages: ours is registered by its import.
    try:
        from lm_eval.__main__ import cli_evaluate

        import solm.evaluation.lm_eval  # noqa: F401
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
