"""`solm train`."""

import importlib.util
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from solm.cli import checks
from solm.cli.options import JsonOption, RevisionOption, TrustOption
from solm.cli.sources import long_enough, read_sources
from solm.core.errors import SolmError

if TYPE_CHECKING:
    from solm.training.config import RunConfig


def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the run; an interrupted one there continues.")],
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML file of settings.")] = None,
    method: Annotated[
        str | None,
        typer.Option(help="values (default): predict what an action loses. grpo: policy gradient, as in the paper."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Hub id, folder, .gguf file or builtin:smollm2-135m (default)."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            help="Text, separated by commas: files, folders, hub data sets, pydoc, self:N (N texts by the model).",
        ),
    ] = None,
    space: Annotated[str | None, typer.Option(help="Action space, such as grid or joint-8.")] = None,
    sparsity: Annotated[
        str | None, typer.Option(help="How actions are carried out: default, cpu, nested or paper.")
    ] = None,
    allocation: Annotated[
        str | None,
        typer.Option(help="File of solm allocate, or a policy whose allocation to use; without it, uniform shares."),
    ] = None,
    context: Annotated[int | None, typer.Option(help="Tokens read densely before the controlled ones.")] = None,
    length: Annotated[int | None, typer.Option(help="Controlled tokens per text.")] = None,
    texts: Annotated[int | None, typer.Option(help="Number of texts per batch.")] = None,
    batches: Annotated[int | None, typer.Option(help="values: batches of random schedules to score.")] = None,
    rollouts: Annotated[int | None, typer.Option(help="grpo: schedules per text.")] = None,
    updates: Annotated[int | None, typer.Option(help="grpo: number of optimiser updates.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="grpo: AdamW learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all random numbers.")] = None,
    shard: Annotated[
        bool,
        typer.Option("--shard", help="Under torchrun: split the model's layers across the processes, for big models."),
    ] = False,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting, as key=value; may be repeated.")
    ] = None,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    json: JsonOption = False,
) -> None:
    """Train a policy for a frozen model. An interrupted run continues with the same --out.

    \b
    Examples:
      solm train --out runs/a --data pydoc:train,self:32 --batches 60
      solm train --out runs/b --method grpo --space joint-8 --updates 200 --set gamma=0.95
      torchrun --nproc-per-node 8 -m solm.cli train --shard --model meta-llama/Llama-3.1-70B --out runs/c
    """
    import yaml

    from solm.cli.output import print_json, progress_bar, say
    from solm.core.interrupt import Interrupted
    from solm.training.allocate import read_allocation
    from solm.training.checkpoint import CONFIG, read_stored
    from solm.training.config import TrainConfig, read_values
    from solm.training.grpo import train as train_grpo
    from solm.training.ranks import ranks
    from solm.training.values import SAMPLES, train_values

    given: dict[str, Any] = {
        "model": model, "data": data, "space": space, "sparsity": sparsity, "context": context, "length": length,
        "texts": texts, "batches": batches, "rollouts": rollouts, "updates": updates,
        "learning_rate": learning_rate, "seed": seed, "method": method, "revision": revision,
    }  # fmt: skip
    overrides = {key: value for key, value in given.items() if value is not None}
    names = {key: checks.typed(key) for key in overrides}
    for item in setting or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise SolmError(f"--set: {item!r} is not key=value")
        try:
            overrides[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise SolmError(f"--set: {value!r} is not a value of YAML") from None
        names[key.strip()] = f"--set {key.strip()}"
    checks.out_folder(out)
    source = out / CONFIG if config is None and (out / CONFIG).exists() else config
    with checks.option("--config" if source == config else "--out"):
        known = read_stored(out).model_dump() if source == out / CONFIG else read_values(config)
    chosen = _configuration({**known, **overrides}, names, str(source or "the configuration"))
    if allocation is not None:
        with checks.option("--allocation"):
            sparsity_under = chosen.sparsity.under(read_allocation(allocation))
        chosen = chosen.model_copy(update={"sparsity": sparsity_under})
    _check(chosen, trust_remote_code)

    from solm.runtime.load import load

    with ranks(shard) as processes, progress_bar(processes.first) as progress:
        lm = load(
            chosen.model, sparsity=chosen.sparsity, dtype=chosen.dtype, backend="torch", shard=shard,
            revision=chosen.revision, trust_remote_code=trust_remote_code,
        )  # fmt: skip

        def report(record: dict[str, Any]) -> None:
            progress.show("training", record["update"], total, note(record))

        try:
            if isinstance(chosen, TrainConfig):
                total = chosen.updates
                train_grpo(lm, chosen, out, report, processes)
            else:
                total = chosen.batches
                progress.show("training", min(total, len(list((out / SAMPLES).glob("*")))), total)
                train_values(lm, chosen, out, report, processes, partial(progress.show, "level costs"))
        except (Interrupted, KeyboardInterrupt) as interrupted:
            progress.stop()
            say("interrupted; finished parts are kept. The same command continues")
            raise typer.Exit(getattr(interrupted, "exit_code", 130)) from None
    if processes.first and json:
        print_json({"policy": str(out / "policy"), "method": chosen.method})
    elif processes.first:
        print(f"policy: {out / 'policy'}")


def _configuration(asked: dict[str, Any], names: dict[str, str], origin: str) -> Any:
    """The run's settings. names: what the user typed for a key that is not from the file `origin`."""
    from solm.training.config import METHODS

    method = asked.setdefault("method", "values")
    if method not in METHODS:
        raise SolmError(f"{names.get('method', origin)}: unknown method {method!r}; choose {' or '.join(METHODS)}")
    fields = METHODS[method].model_fields
    for key, name in names.items():
        others = [other for other, kind in METHODS.items() if key in kind.model_fields]
        if key not in fields and others:
            raise SolmError(f"{name}: it goes with --method {others[0]}, not {method}")
    try:
        return METHODS[method].build(asked, origin)
    except SolmError as error:
        if not isinstance(error.__cause__, ValidationError):
            raise
        raise SolmError(checks.explain(error.__cause__, lambda key: names.get(key, f"{origin}: {key}"))) from error


def _check(chosen: "RunConfig", trust: bool) -> None:
    """Check model, layer, context and text of a run."""
    if getattr(chosen, "method", None) == "grpo" and importlib.util.find_spec("tensorboard") is None:
        raise SolmError("--method: grpo needs tensorboard; run: pip install '.[train]' in a checkout of solm")
    checks.backend("torch", None, None, chosen.dtype)
    known = checks.model_config(chosen.model, chosen.revision, trust)
    checks.tokenizer(chosen.model, chosen.revision, trust)
    checks.room(known, chosen.context + chosen.length, "--context and --length")
    text = chosen.context + chosen.length + 1
    costs = getattr(chosen, "level_cost_context", 0) + getattr(chosen, "level_cost_length", 0)
    needed = max(text, costs + 1)
    layer = getattr(chosen, "layer", None)
    if layer is not None and layer >= known.shapes.layers:
        raise SolmError(f"--set layer: {layer} is out of range: this model has layers 0 to {known.shapes.layers - 1}")
    checks.room(known, costs, "--set level_cost_context and level_cost_length")
    for source in chosen.data:
        name, _, count = source.partition(":")
        if name != "self":
            long_enough(read_sources(source), needed)
        elif count and (not count.isdigit() or int(count) < 1):
            raise SolmError(f"--data: {source!r} is not self:N with N of at least 1")
        elif count and int(count) * text < needed:
            raise SolmError(f"--data: {source} holds {int(count) * text} tokens; level costs need {needed}")


def note(record: dict[str, Any]) -> str:
    """One line about an update or batch."""
    speed = f"{record['token_steps_per_second']:.0f} token-steps/s"
    if "cost" in record:
        return f"mean cost {record['cost']:.3f} dense ppl {record['perplexity']:.1f} {speed}"
    gaps = "/".join(f"{record[f'gap_{axis}']:.3f}" for axis in ("attention", "mlp", "bits"))
    return (
        f"reward {record['reward']:.3f} ppl {record['perplexity']:.1f} gap {gaps} "
        f"entropy {record['entropy']:.2f} {speed}"
    )
