"""`solm push`."""

from typing import Annotated

import typer

from solm.cli import checks
from solm.cli.options import JsonOption


def push(
    policy: Annotated[str, typer.Argument(help="Folder of a trained policy.")],
    repository: Annotated[str, typer.Argument(help="Hub repository, such as me/my-policy.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    json: JsonOption = False,
) -> None:
    """Upload a policy to the hub, with its model card.

    \b
    Example:
      solm push runs/a/policy me/smollm2-135m-joint8
    """
    from solm.cli.output import print_json
    from solm.policies.artifact import TrainedPolicy

    with checks.option("POLICY"):
        trained = TrainedPolicy.from_pretrained(policy)
    with checks.option("REPOSITORY"):
        address = trained.push_to_hub(repository, private)
    if json:
        print_json({"policy": policy, "address": address})
        return
    print(address)
