"""`python -m solm.paper train` and `eval`."""

import json as json_format
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from solm.core.errors import SolmError

app = typer.Typer(name="solm.paper", pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)


@app.command()
def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the run; an interrupted one there continues.")],
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="A setting, as key=value; may be repeated.")
    ] = None,
) -> None:
    """Train a policy network by GRPO on counterfactual schedules.

    \b
    Example:
      python -m solm.paper train --out runs/a --set space=joint-27 --set data=books.txt --set updates=200
    """
    import yaml

    from solm.core.files import read_model
    from solm.paper.config import TrainConfig
    from solm.paper.grpo import train as train_policy
    from solm.paper.run_folder import RUN, Run
    from solm.runtime.load import load

    values = read_model(out / RUN, Run).config.model_dump() if (out / RUN).exists() else {}
    for item in setting or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise SolmError(f"--set: {item!r} is not key=value")
        try:
            values[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise SolmError(f"--set: {value!r} is not a value of YAML") from None
    chosen = TrainConfig.build(values, "--set")
    lm = load(chosen.model, sparsity=chosen.sparsity, dtype=chosen.dtype, backend="torch")

    def report(record: dict[str, Any]) -> None:
        print(
            f"update {record['update']} of {chosen.updates}: reward {record['reward']:.3f}, entropy "
            f"{record['entropy']:.2f}, penalty {record['penalty']:.3f}, "
            f"{record['token_steps_per_second']:.0f} token-steps/s",
            file=sys.stderr,
        )

    train_policy(lm, chosen, out, report)
    print(f"policy: {out / 'policy'}")


@app.command("eval")
def evaluate(
    policy: Annotated[Path, typer.Option("--policy", "-p", help="Folder of a trained policy.")],
    data: Annotated[str, typer.Option("--data", "-d", help="Source of text that the policy was not trained on.")],
    model: Annotated[str, typer.Option("--model", "-m", help="The model it was trained for.")] = "builtin:smollm2-135m",
    budgets: Annotated[str, typer.Option(help="Net keeps, separated by commas.")] = "0.8,0.6",
    texts: Annotated[int, typer.Option(help="Number of texts.", min=1)] = 16,
    context: Annotated[int, typer.Option(help="Tokens of a text that are read densely.", min=2)] = 512,
    length: Annotated[int, typer.Option(help="Controlled tokens of a text.", min=1)] = 64,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of texts and draws.", min=0)] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare a policy with the static schedule that spends as much, on the same tokens.

    \b
    Example:
      python -m solm.paper eval --policy runs/a/policy --data pydoc:heldout --budgets 0.8,0.6
    """
    from solm.core.budget import Budget
    from solm.paper.policy import PaperPolicy
    from solm.paper.rollout import compare
    from solm.runtime.load import load

    trained = PaperPolicy.load(policy)
    try:
        nets = [float(net) for net in budgets.split(",")]
    except ValueError:
        raise SolmError(f"--budgets: {budgets!r} is not a list of numbers") from None
    for net in nets:
        Budget.from_net(net, trained.config.space)
    lm = load(model, sparsity=trained.config.sparsity, dtype=dtype, backend="torch")
    trained.config.base.check(lm.identity)
    points = compare(lm, trained, data, nets, texts, context, length, seed)
    if json:
        print(json_format.dumps({"policy": str(policy), "data": data, "points": points}))
        return
    for point in points:
        print(
            f"net keep {point['budget']:g} (realised {point['realised']:.3f}): policy {point['policy']:.4f}, static "
            f"{point['static']:.4f}, dense {point['dense']:.4f} nats per token; policy minus static "
            "{value:+.4f} [{low:+.4f}, {high:+.4f}]".format(**point["difference"])
        )


def main() -> None:
    """Run a command: errors are one line and code 2."""
    try:
        app()
    except SolmError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
