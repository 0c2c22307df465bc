"""`solm eval`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from solm.cli.options import (
    DEFAULT_MODEL,
    BackendOption,
    DtypeOption,
    KvCacheOption,
    ModelOption,
    PolicyOption,
    PrecisionOption,
    SeedOption,
    in_space,
    numbers,
    output,
    progress_bar,
    settings,
)
from solm.core.errors import SolmError

if TYPE_CHECKING:
    from solm.evaluation.arms import Arm
    from solm.policies.priced import PricedPolicy
    from solm.runtime.language_model import LanguageModel


def evaluate(
    data: Annotated[
        str,
        typer.Option(
            "--data", "-d", help="Comma-separated: files (.txt, .jsonl), folders, hub data sets, pydoc:heldout."
        ),
    ],
    model: ModelOption = DEFAULT_MODEL,
    policy: PolicyOption = None,
    budgets: Annotated[str, typer.Option(help="Net keeps, fixed in advance.")] = "0.55,0.65,0.75",
    texts: Annotated[int, typer.Option(help="Texts.")] = 64,
    context: Annotated[int, typer.Option(help="Tokens read densely first.")] = 512,
    length: Annotated[int, typer.Option(help="Controlled tokens that are scored.")] = 128,
    trials: Annotated[int, typer.Option(help="Random schedules per text.")] = 8,
    space: Annotated[
        str | None,
        typer.Option(help="Action space, such as joint-8; with a policy, one within its own."),
    ] = None,
    sparsity: Annotated[str | None, typer.Option(help="Without a policy: default or paper.")] = None,
    tuning: Annotated[
        str | None,
        typer.Option(help="Text to choose tuned and to calibrate teal on; not the text that is evaluated."),
    ] = None,
    rival: Annotated[
        list[str] | None, typer.Option(help="One more policy over the same space, as name=folder; may be repeated.")
    ] = None,
    baselines: Annotated[
        str | None,
        typer.Option(
            help="More arms: constant, teal, drift, entropy, per-request. drift and entropy step token by token: slow."
        ),
    ] = None,
    oracle: Annotated[bool, typer.Option("--oracle", help="Also measure the ceiling, with access to answers.")] = False,
    seed: SeedOption = 0,
    dtype: DtypeOption = "auto",
    backend: BackendOption = "torch",
    precision: PrecisionOption = None,
    kv_cache_dtype: KvCacheOption = "auto",
    json: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write a picture of perplexity against cost (.png or .svg) here.")
    ] = None,
) -> None:
    """Compare a policy with dense, uniform, allocated and random schedules at the same realised budget.

    Examples:

        solm eval --policy runs/a/policy --data pydoc:heldout --json result.json --plot result.png

        solm eval --space joint-27 --data wiki.txt --budgets 0.6     (baselines alone)

        solm eval --policy builtin:smollm2-135m --space joint-27 --data wiki.txt --tuning web.jsonl --oracle

        solm eval --policy builtin:smollm2-135m --space attention-fine --data wiki.txt --baselines constant,entropy

    An interrupted evaluation with --json goes on where it stopped.
    """
    from solm.core.actions import ActionSpace
    from solm.core.files import resumable, write_bytes, write_text
    from solm.core.sparsity import SparsityConfig
    from solm.data.windows import token_stream
    from solm.evaluation import show
    from solm.evaluation.baselines import BaselineRequest, baseline
    from solm.evaluation.perplexity import EvaluationSettings
    from solm.evaluation.perplexity import evaluate as run
    from solm.evaluation.pictures import kind_of
    from solm.policies.artifact import TrainedPolicy
    from solm.runtime.load import load

    if policy is not None and sparsity is not None:
        raise SolmError("a policy brings its own sparsity; drop --sparsity")
    if policy is None and space is None:
        raise SolmError("give a policy to evaluate, or --space to compare the baselines alone")
    kind = kind_of(plot)
    chosen = settings(
        EvaluationSettings, budgets=numbers(budgets, "--budgets"), texts=texts, context=context, length=length,
        trials=trials, seed=seed, oracle=oracle,
    )  # fmt: skip
    grid = None if space is None else ActionSpace.preset(space)
    trained = None if policy is None else in_space(TrainedPolicy.from_pretrained(policy), grid)
    how = None if sparsity is None else SparsityConfig.preset(sparsity)
    lm = load(
        model, trained, sparsity=how, dtype=dtype, backend=backend, precision=precision, kv_cache_dtype=kv_cache_dtype
    )
    rivals: dict[str, PricedPolicy | Arm] = {}
    for name, _, folder in (item.partition("=") for item in rival or []):
        rivals[name] = _rival(folder, lm)
    assert lm.tokenizer is not None
    streams = [token_stream(source, lm.tokenizer) for source in data.split(",")]
    calibration = None if tuning is None else token_stream(tuning.split(","), lm.tokenizer)
    for name in (item.strip() for item in (baselines or "").split(",") if item.strip()):
        rivals[name] = baseline(name, BaselineRequest(lm, grid or lm.space, calibration, context, seed))
    with resumable(json) as partial, progress_bar() as progress:
        task = progress.add_task("evaluating", total=None, note="")
        result = run(
            lm, streams, chosen, grid, partial,
            lambda done, total: progress.update(task, completed=done, total=total),
            tuning=calibration, rivals=rivals,
        )  # fmt: skip
        if json is not None:
            write_text(json, result.model_dump_json(indent=2) + "\n")
    if plot is not None:
        write_bytes(plot, show.plot(result, kind))
    console = output()
    console.print(show.table(result))
    for line in show.verdict(result):
        console.print(line)


def _rival(folder: str, lm: "LanguageModel") -> "PricedPolicy":
    from solm.policies.artifact import TrainedPolicy
    from solm.policies.priced import PricedPolicy

    trained = TrainedPolicy.from_pretrained(folder)
    trained.config.base.check(lm.identity)
    policy = trained.with_space(lm.space).policy()
    if not isinstance(policy, PricedPolicy):
        raise SolmError(f"{folder} is not a policy trained with --method values, which a rival has to be")
    return policy
