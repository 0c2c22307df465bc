"""A policy of the paper: what it sees before a step, how it draws an action, and how it lies on disk."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, Field

from solm.core.actions import ActionSpace
from solm.core.arrays import as_tensor
from solm.core.cost import axis_levels
from solm.core.errors import DamagedFileError, PolicyMismatchError, first_line
from solm.core.files import read_json, read_model, read_tensors, write_bytes, write_json
from solm.core.sparsity import SparsityConfig
from solm.paper.network import Features, Memory, NetworkConfig, PolicyNetwork
from solm.policies.artifact import digest_of
from solm.policies.identity import BaseIdentity
from solm.policies.priced import feasible_levels
from solm.runtime.language_model import LanguageModel

CONFIG, WEIGHTS = "paper_policy.json", "policy.safetensors"


@dataclass(frozen=True)
class Rows:
    """N rows between two steps, on the host but for `hidden` and `memory`.

    hidden: [N, H], what the output head read after the last token. target: [N, 3] float64 shares, the averages allowed
    over `horizon` steps, of which `taken` are done. spent: [N, 3] float64, sums of the shares realised over counted
    [N, 3] int64 steps that could be controlled. previous: [N] int64, the last action.
    """

    hidden: torch.Tensor
    target: torch.Tensor
    horizon: int
    spent: torch.Tensor
    counted: torch.Tensor
    previous: torch.Tensor
    memory: Memory
    taken: int = 0

    def after(
        self, actions: torch.Tensor, hidden: torch.Tensor, realised: torch.Tensor, controllable: torch.Tensor
    ) -> "Rows":
        """The rows after a step under actions [N] that realised shares [N, 3], of which those controllable [N, 3] bool
        count."""
        return replace(
            self, hidden=hidden, previous=actions, taken=self.taken + 1,
            spent=self.spent + realised * controllable, counted=self.counted + controllable,
        )  # fmt: skip


@dataclass(frozen=True)
class Situation:
    """What the next step of N rows can do. levels: per axis [N, levels] float64, the shares that its levels would
    realise. controllable: [N, 3] bool; on other axes the step is dense, whatever is decided."""

    levels: tuple[torch.Tensor, ...]
    controllable: torch.Tensor

    @classmethod
    def of(cls, lm: LanguageModel, space: ActionSpace, sparsity: SparsityConfig, lengths: torch.Tensor) -> Self:
        """Of rows that have seen lengths [N] tokens."""
        seen = lengths.numpy() + 1
        levels = axis_levels(space, seen, sparsity, lm.shapes)
        return cls(tuple(as_tensor(axis) for axis in levels), as_tensor(sparsity.controllable(seen)))


def features(rows: Rows, situation: Situation, embedding: torch.Tensor) -> Features:
    """One step's observation as network input, T = 1, on the device of the hidden state. embedding: [N, H], of the
    tokens about to be processed."""
    progress = torch.full((len(rows.target), 1), min(1.0, rows.taken / rows.horizon), dtype=torch.float64)
    average = rows.spent / rows.counted.clamp(min=1)
    deviation = (average - rows.target) * (rows.counted > 0)
    scalars = torch.cat([progress, situation.controllable[:, :1].double(), rows.target, deviation], 1).float()
    parts = (rows.hidden, embedding, scalars, rows.previous)
    return Features(*(part[:, None].to(rows.hidden.device) for part in parts))


def feasible(rows: Rows, situation: Situation) -> torch.Tensor:
    """[N, A] bool: actions after which every axis can still meet its budget by the horizon, if later steps can realise
    what this one can."""
    remaining = max(1, rows.horizon - rows.taken)
    parts = []
    for axis, shares in enumerate(situation.levels):
        levels = shares.numpy()
        target, spent, counted = (values[:, axis].numpy() for values in (rows.target, rows.spent, rows.counted))
        ends = levels[:, 0], levels[:, -1]
        parts.append(torch.from_numpy(feasible_levels(levels, target, spent, counted, remaining, ends)))
    attention, mlp, bits = parts
    return (attention[:, :, None, None] & mlp[:, None, :, None] & bits[:, None, None, :]).flatten(1)


class PolicyConfig(BaseModel, frozen=True, extra="forbid"):
    """What a policy is and where it comes from. digest: that of `digest_of`, in a file."""

    format: Literal[1] = 1
    base: BaseIdentity
    space: ActionSpace
    sparsity: SparsityConfig
    network: NetworkConfig
    provenance: dict[str, Any] = Field(default_factory=dict)
    digest: str = ""


@dataclass
class PaperPolicy:
    """Draws actions from a network's distribution over those of its space.

    clamp: rule out actions after which the budget could no longer be met by the horizon. Training leaves it off and has
    a penalty instead.
    """

    config: PolicyConfig
    network: PolicyNetwork
    clamp: bool = True

    def start(self, hidden: torch.Tensor, target: torch.Tensor, horizon: int) -> Rows:
        """New rows within target [N, 3] over `horizon` steps; hidden: [N, H], see `Rows`."""
        nothing, dense = torch.zeros_like(target), self.config.space.dense_index
        return Rows(
            hidden, target, horizon, nothing, nothing.long(), torch.full((len(target),), dense),
            self.network.start(len(target), hidden.device),
        )  # fmt: skip

    @torch.no_grad()
    def act(
        self, rows: Rows, situation: Situation, embedding: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, Features, Rows]:
        """Actions [N] int64, dense on axes that cannot be controlled; what the network saw; rows that remember it."""
        seen = features(rows, situation, embedding)
        logits, memory = self.network(seen, rows.memory)
        scores = logits[:, 0].double().cpu()
        if self.clamp:
            scores = scores.masked_fill(~feasible(rows, situation), -torch.inf)
        # Gumbel-max on the CPU, so that a seed means the same on every device.
        noise = torch.rand(scores.shape, generator=generator, dtype=torch.float64)
        chosen = (scores - torch.log(-torch.log(noise.clamp(1e-300, 1 - 1e-16)))).argmax(-1)
        actions = self.config.space.controlled(chosen.numpy(), situation.controllable.numpy())
        return torch.from_numpy(actions), seen, replace(rows, memory=memory)

    def save(self, folder: Path) -> None:
        """Write config and weights to `folder`, the config last: with it the folder is a policy."""
        from safetensors.torch import save

        weights = save({name: tensor.contiguous().cpu() for name, tensor in self.network.state_dict().items()})
        digest = digest_of(self.config.model_dump(mode="json"), weights)
        write_bytes(folder / WEIGHTS, weights)
        write_json(folder / CONFIG, self.config.model_copy(update={"digest": digest}).model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The policy in `folder`. Raises `SolmError` where there is none, `DamagedFileError` for a damaged one, and
        `PolicyMismatchError` where its parts do not fit one another."""
        config, tensors = read_model(folder / CONFIG, PolicyConfig), read_tensors(folder / WEIGHTS)
        if digest_of(read_json(folder / CONFIG), (folder / WEIGHTS).read_bytes()) != config.digest:
            raise DamagedFileError(f"{folder} is damaged: {CONFIG} and {WEIGHTS} do not match the digest in {CONFIG}")
        if config.network.actions != len(config.space):
            raise PolicyMismatchError(
                f"the network has {config.network.actions} actions, its action space {len(config.space)}"
            )
        network = PolicyNetwork(config.network)
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            raise PolicyMismatchError(f"the weights of {folder} do not fit its network: {first_line(error)}") from error
        return cls(config, network.eval())
