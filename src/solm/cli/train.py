"""`solm train`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from solm.cli.options import progress_bar
from solm.core.errors import SolmError


def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder; an interrupted run there goes on.")],
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML file of settings.")] = None,
    method: Annotated[
        str | None,
        typer.Option(help="values: predict what every action costs (default). grpo: policy gradient, as in the paper."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Base model.")] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", help="Comma-separated: files, folders, hub data sets, pydoc:train, self:N."),
    ] = None,
    space: Annotated[str | None, typer.Option(help="Action space preset, such as grid or joint-8.")] = None,
    sparsity: Annotated[str | None, typer.Option(help="default, native, nested or paper.")] = None,
    allocation: Annotated[
        str | None,
        typer.Option(help="What layers keep of an action: a file of solm allocation, or a policy's. Evenly without."),
    ] = None,
    context: Annotated[int | None, typer.Option(help="Tokens read densely before an episode.")] = None,
    length: Annotated[int | None, typer.Option(help="Controlled tokens per episode.")] = None,
    texts: Annotated[int | None, typer.Option(help="Texts per batch.")] = None,
    batches: Annotated[int | None, typer.Option(help="values: batches of random schedules to score.")] = None,
    rollouts: Annotated[int | None, typer.Option(help="grpo: schedules per text.")] = None,
    updates: Annotated[int | None, typer.Option(help="grpo: optimiser updates in all.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="grpo: AdamW learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything that is drawn.")] = None,
    shard: Annotated[
        bool,
        typer.Option("--shard", help="Under torchrun: deal the model's layers out to the processes, for big models."),
    ] = False,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting, as key=value; may be repeated.")
    ] = None,
) -> None:
    """Train a policy for a frozen model.

    Examples:

        solm train --out runs/a --data pydoc:train,self:32 --batches 60

        solm train --out runs/b --method grpo --space joint-8 --updates 200 --set gamma=0.95

        solm train --out runs/a          (goes on after an interruption)

        torchrun --nproc-per-node 8 -m solm.cli train --shard --model meta-llama/Llama-3.1-70B --out runs/c
    """
    import yaml

    from solm.core.sparsity import SparsityConfig
    from solm.training.allocate import read_allocation
    from solm.training.checkpoint import CONFIG, read_stored
    from solm.training.config import METHODS, TrainConfig, read_values
    from solm.training.grpo import train as train_grpo
    from solm.training.interrupt import Interrupted
    from solm.training.ranks import ranks
    from solm.training.values import train_values

    given: dict[str, Any] = {
        "model": model, "data": data, "space": space, "sparsity": sparsity, "context": context, "length": length,
        "texts": texts, "batches": batches, "rollouts": rollouts, "updates": updates,
        "learning_rate": learning_rate, "seed": seed, "method": method,
    }  # fmt: skip
    overrides = {key: value for key, value in given.items() if value is not None}
    for item in setting or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise SolmError(f"--set {item!r}: expected key=value")
        overrides[key.strip()] = yaml.safe_load(value)
    if allocation is not None:
        overrides["sparsity"] = SparsityConfig.preset(sparsity or "default").under(read_allocation(allocation))
    source = out / CONFIG if config is None and (out / CONFIG).exists() else config
    known = read_stored(out).model_dump() if source == out / CONFIG else read_values(config)
    asked = {**known, **overrides}
    name = asked.setdefault("method", "values")
    if name not in METHODS:
        raise SolmError(f"unknown method {name!r}; choose {' or '.join(METHODS)}")
    chosen = METHODS[name].build(asked, str(source or "the configuration"))

    from solm.runtime.load import load

    with ranks(shard) as processes, progress_bar(processes.first) as progress:
        lm = load(chosen.model, sparsity=chosen.sparsity, dtype=chosen.dtype, shard=shard)
        total = chosen.updates if isinstance(chosen, TrainConfig) else chosen.batches
        task = progress.add_task("training", total=total, note="")

        def report(record: dict[str, Any]) -> None:
            progress.update(task, completed=record["update"], note=note(record))

        try:
            if isinstance(chosen, TrainConfig):
                train_grpo(lm, chosen, out, report, processes)
            else:
                train_values(lm, chosen, out, report, processes)
        except Interrupted as interrupted:
            progress.stop()
            typer.echo(f"interrupted; saved. Go on with: solm train --out {out}", err=True)
            raise typer.Exit(interrupted.exit_code) from None
    if processes.first:
        typer.echo(f"policy: {out / 'policy'}")


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
