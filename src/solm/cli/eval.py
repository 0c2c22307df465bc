"""`solm eval`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from solm.cli import checks
from solm.cli.budget_lists import asked_budgets, reachable
from solm.cli.options import (
    DEFAULT_MODEL,
    BackendOption,
    ContextOption,
    DataOption,
    DtypeOption,
    JsonOption,
    KvCacheOption,
    LengthOption,
    ModelOption,
    PolicyOption,
    PrecisionOption,
    RevisionOption,
    RunSeedOption,
    SpaceOption,
    SparsityOption,
    TextsOption,
    TimingsOption,
    TrustOption,
)
from solm.cli.sources import long_enough, one_stream, read_sources, streams
from solm.core.errors import SolmError

if TYPE_CHECKING:
    from solm.cli.budget_lists import BudgetList
    from solm.core.actions import ActionSpace
    from solm.core.budget import Budgets
    from solm.evaluation.arms import Arm
    from solm.evaluation.perplexity import EvaluationSettings
    from solm.policies.artifact import TrainedPolicy
    from solm.runtime.facts import ModelFacts
    from solm.runtime.language_model import LanguageModel

_ARMS = ("dense", "policy", "uniform", "allocated", "tuned", "random", "oracle")
"""Arms that are no baselines to ask for."""
_LOGITS = 1 << 28
"""Numbers of logits that a pass may leave in memory: 1 GiB in float32."""


def evaluate(
    data: DataOption,
    model: ModelOption = DEFAULT_MODEL,
    policy: PolicyOption = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            help="Such as 0.7,0.8, or auto: five between the lowest and 1. With step times (the policy's or --timings) "
            "numbers are shares of the dense step's milliseconds, and speed=1.2,speed=1.4, ms=8 and loss=0.05 work; "
            "else, and as keep=0.6,keep=0.7, net keeps. By default auto with step times, else 0.55,0.65,0.75."
        ),
    ] = None,
    timings: TimingsOption = None,
    texts: TextsOption = 64,
    context: ContextOption = 512,
    length: LengthOption = 128,
    trials: Annotated[
        int | None, typer.Option(help="Random schedules per text; by default 8, and none for budgets in time.")
    ] = None,
    space: SpaceOption = None,
    sparsity: SparsityOption = None,
    tuning: Annotated[
        str | None,
        typer.Option(help="Text that baselines tuned and teal are fitted to; not the text that is evaluated."),
    ] = None,
    rival: Annotated[
        list[str] | None, typer.Option(help="One more policy over the same space, as name=folder; may be repeated.")
    ] = None,
    baselines: Annotated[
        str | None,
        typer.Option(help="More baselines: constant (always there for budgets in time), teal, upper-bits."),
    ] = None,
    oracle: Annotated[
        bool, typer.Option("--oracle", help="Also find the best schedules with knowledge of the text: a ceiling.")
    ] = False,
    seed: RunSeedOption = 0,
    dtype: DtypeOption = "auto",
    backend: BackendOption = "torch",
    precision: PrecisionOption = None,
    kv_cache_dtype: KvCacheOption = None,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the result here, as JSON.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write a picture of perplexity against cost (.png or .svg) here.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compare a policy with dense steps, and with uniform, allocated, random and other schedules at equal compute.

    Uniform, allocated, random and constant schedules spend on every axis what the policy spends; tuned ones spend
    the same net keep.

    An interrupted evaluation with --out continues where it stopped.

    \b
    Examples:
      solm eval --policy builtin:smollm2-135m --data pydoc:heldout --out result.json --plot result.png
      solm eval --space joint-27 --data wiki.txt --budgets 0.6
      solm eval --policy builtin:smollm2-135m --space joint-27 --data wiki.txt --tuning web.jsonl --oracle
      solm eval --policy builtin:smollm2-135m --data wiki.txt --baselines constant
      solm eval --model qwen.gguf --backend cpu --policy runs/qwen/policy --data wiki.txt --budgets auto
    """
    from solm.cli.output import output, print_json, progress_bar, say
    from solm.core.budget import Budgets
    from solm.core.files import resumable, write_bytes, write_text
    from solm.evaluation import show
    from solm.evaluation.baselines import BASELINES, BaselineRequest
    from solm.evaluation.perplexity import EvaluationSettings
    from solm.evaluation.perplexity import evaluate as run
    from solm.evaluation.pictures import kind_of
    from solm.evaluation.sources import unlike
    from solm.runtime.load import engine_sparsity, load

    if policy is not None and sparsity is not None:
        raise SolmError("--sparsity: a policy brings its own; drop one of the two")
    if policy is None and space is None:
        raise SolmError("--policy: give a policy to evaluate, or --space to compare the baselines alone")
    checks.out_file(out)
    checks.plot_file(plot)
    names = [item.strip() for item in (baselines or "").split(",") if item.strip()]
    for name in names:
        if name not in BASELINES:
            raise SolmError(f"--baselines: unknown baseline {name!r}; choose among {', '.join(BASELINES)}")
    how = checks.sparsity_of(sparsity)
    grid = checks.space_of(space)
    checks.backend(backend, precision, kv_cache_dtype, dtype)
    config = checks.model_config(model, revision, trust_remote_code, backend=backend)
    trained = checks.trained_policy(policy, config, grid)
    if "teal" in names and tuning is None and (trained is None or trained.config.sparsity.thresholds is None):
        raise SolmError("--baselines: teal needs text to calibrate its thresholds on; give --tuning")
    if "upper-bits" in names and (how or engine_sparsity(trained)).bits_site != "weights":
        raise SolmError("--baselines: upper-bits needs a policy that chooses weight bits, or --sparsity nested")
    offered = trained.config.space if trained is not None else grid
    assert offered is not None
    asked, known = asked_budgets(budgets, "0.55,0.65,0.75", timings, trained, model, backend)
    if asked.in_time:
        names = list(dict.fromkeys(["constant", *names]))
    if trials is None:
        trials = 0 if asked.in_time else 8
    chosen = checks.settings(
        EvaluationSettings, budgets=asked.values or (1.0,), texts=texts, context=context, length=length,
        trials=trials, seed=seed, oracle=oracle, currency="time" if asked.in_time else "keep",
    )  # fmt: skip
    # A first check: the exact lowest budget is known once the model is loaded.
    _with_budgets(Budgets(offered, how or engine_sparsity(trained), config.shapes, trained, 0, known), chosen, asked)
    checks.room(config, context + length, "--context and --length")
    trained_rivals = _rivals(rival or [], config, offered, (*BASELINES, *_ARMS))
    sources = read_sources(data)
    long_enough(sources, context + length + 1)
    tuning_sources = None if tuning is None else read_sources(tuning, "--tuning")
    long_enough(tuning_sources or [], context + length + 1, "--tuning")
    tokenizer = checks.tokenizer(model, revision, trust_remote_code)
    lm = load(
        model, trained, tokenizer=tokenizer, sparsity=how, dtype=dtype, backend=backend, precision=precision,
        kv_cache_dtype=kv_cache_dtype, timings=timings, revision=revision, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    chosen = _with_budgets(lm.budgets(lm.policy("static", offered)), chosen, asked)
    tokens = streams(sources, lm.tokenizer)
    calibration = one_stream(tuning_sources, lm.tokenizer)
    rivals = {name: _rival_arm(name, other, lm) for name, other in trained_rivals.items()}
    for name in names:
        rivals[name] = BASELINES[name](BaselineRequest(lm, offered, calibration, context, seed))
    with resumable(out) as partial, progress_bar() as progress:
        result = run(
            lm, tokens, chosen, grid, partial, lambda done, total: progress.show("evaluating", done, total),
            tuning=calibration, rivals=rivals,
        )  # fmt: skip
        if out is not None:
            write_text(out, result.model_dump_json(indent=2) + "\n")
    curve = None if trained is None else trained.curve
    strange = None if curve is None else unlike(result, curve)
    if strange is not None:
        say(strange)
    if plot is not None:
        write_bytes(plot, show.plot(result, kind_of(plot)))
    if json:
        print_json(result.model_dump(mode="json"))
        return
    console = output()
    console.print(show.table(result, console.width))
    for line in show.verdict(result):
        console.print(line)


def _with_budgets(offer: "Budgets", chosen: "EvaluationSettings", asked: "BudgetList") -> "EvaluationSettings":
    """The settings with the budgets that were asked for."""
    middle = chosen.context + chosen.length // 2
    values = reachable(asked, offer, middle)
    together = max(1, _LOGITS // (len(values) * chosen.length * offer.shapes.vocabulary))
    return chosen.model_copy(update={"budgets": values, "batch": min(chosen.batch, together)})


def _rivals(
    items: list[str], config: "ModelFacts", space: "ActionSpace", taken: tuple[str, ...]
) -> "dict[str, TrainedPolicy]":
    """The policies of --rival by name, which must not be the name of another arm."""
    from solm.policies.priced import PricedPolicy

    found: dict[str, TrainedPolicy] = {}
    for item in items:
        name, equals, folder = item.partition("=")
        if not (name and equals and folder):
            raise SolmError(f"--rival: {item!r} is not name=folder")
        if name in taken or name in found or name.startswith(("random/", "best-of-")):
            raise SolmError(f"--rival: the name {name!r} is taken; choose another")
        trained = checks.trained_policy(folder, config, space, "--rival")
        assert trained is not None
        if not isinstance(trained.policy(), PricedPolicy):
            raise SolmError(f"--rival: {folder} is not a policy trained with --method values, which a rival has to be")
        found[name] = trained
    return found


def _rival_arm(name: str, trained: "TrainedPolicy", lm: "LanguageModel") -> "Arm":
    """A rival under its own allocation and thresholds; its shares are counted as those of all other arms."""
    from solm.evaluation.arms import Arm

    try:
        return Arm(trained.policy(), lm.sparsity.choosing_as(trained.config.sparsity))
    except SolmError as error:
        raise SolmError(f"--rival: {name} cannot be counted as the other arms are: {error}") from error
