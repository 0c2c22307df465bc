"""`solm push`."""

from typing import Annotated

import typer


def push(
    policy: Annotated[str, typer.Argument(help="Folder of a trained policy.")],
    repository: Annotated[str, typer.Argument(help="Hub repository, such as me/my-policy.")],
    private: Annotated[bool, typer.Option(help="Make the repository private.")] = False,
) -> None:
    """Upload a policy to the hub, with its model card.

    Example:

        solm push runs/a/policy me/smollm2-135m-joint8
    """
    from solm.policies.artifact import TrainedPolicy

    print(TrainedPolicy.from_pretrained(policy).push_to_hub(repository, private))
