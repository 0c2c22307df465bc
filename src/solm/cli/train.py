"""`solm train`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from solm.cli.options import progress_bar
from solm.errors import SolmError


def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder; an interrupted run there goes on.")],
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML file of settings.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Base model.")] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", help="Comma-separated: files, folders, hub data sets, pydoc:train, self:N."),
    ] = None,
    space: Annotated[str | None, typer.Option(help="Action space preset, such as joint-8.")] = None,
    semantics: Annotated[str | None, typer.Option(help="default or paper.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens read densely before an episode.")] = None,
    horizon: Annotated[int | None, typer.Option(help="Controlled tokens per episode.")] = None,
    sequences: Annotated[int | None, typer.Option(help="Texts per update.")] = None,
    rollouts: Annotated[int | None, typer.Option(help="Schedules per text.")] = None,
    updates: Annotated[int | None, typer.Option(help="Optimiser updates in all.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="AdamW learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything that is drawn.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting, as key=value; may be repeated.")
    ] = None,
) -> None:
    """Train a policy for a frozen model.

    Examples:

        solm train --out runs/a --space joint-8 --data pydoc:train,self:32 --updates 200

        solm train --out runs/b --config my.yaml --set gamma=0.95

        solm train --out runs/a          (goes on after an interruption)
    """
    import yaml

    from solm.files import read_model
    from solm.training.checkpoint import CONFIG
    from solm.training.config import TrainConfig
    from solm.training.trainer import Interrupted
    from solm.training.trainer import train as run

    given: dict[str, Any] = {
        "model": model, "data": data, "space": space, "semantics": semantics, "context": context, "horizon": horizon,
        "sequences": sequences, "rollouts": rollouts, "updates": updates, "learning_rate": learning_rate, "seed": seed,
    }  # fmt: skip
    overrides = {key: value for key, value in given.items() if value is not None}
    for item in setting or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise SolmError(f"--set {item!r}: expected key=value")
        overrides[key.strip()] = yaml.safe_load(value)
    if config is None and (out / CONFIG).exists():
        stored = read_model(out / CONFIG, TrainConfig).model_dump()
        chosen = TrainConfig.build({**stored, **overrides}, str(out / CONFIG))
    else:
        chosen = TrainConfig.read(config, overrides)

    from solm.decoding.api import load

    lm = load(chosen.model, semantics=chosen.semantics, dtype=chosen.dtype)
    with progress_bar() as progress:
        task = progress.add_task("training", total=chosen.updates, note="")
        try:
            run(lm, chosen, out, lambda record: progress.update(task, completed=record["update"], note=note(record)))
        except Interrupted as interrupted:
            progress.stop()
            typer.echo(f"interrupted; saved. Go on with: solm train --out {out}", err=True)
            raise typer.Exit(interrupted.exit_code) from None
    typer.echo(f"policy: {out / 'policy'}")


def note(record: dict[str, Any]) -> str:
    """One line about an update."""
    gaps = "/".join(f"{record[f'gap_{axis}']:.3f}" for axis in ("attention", "mlp", "bits"))
    return (
        f"reward {record['reward']:.3f} ppl {record['perplexity']:.1f} gap {gaps} "
        f"entropy {record['entropy']:.2f} {record['token_steps_per_second']:.0f} token-steps/s"
    )
