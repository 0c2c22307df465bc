"""A policy on disk: ``policy_config.json``, ``policy.safetensors`` and a model card. The owner of that format."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from solm.core.actions import ActionSpace
from solm.core.budget import Budget
from solm.core.cost import ModelShapes
from solm.core.curve import CURVE, BudgetCurve
from solm.core.errors import DamagedFileError, PolicyMismatchError, SolmError, first_line
from solm.core.files import read_arrays, read_json, read_model, write_bytes, write_json, write_text
from solm.core.sparsity import SparsityConfig
from solm.policies.identity import BaseIdentity as BaseIdentity
from solm.policies.value_policy import ValueConfig, ValuePolicy, ValueWeights, known_levels

if TYPE_CHECKING:
    import torch

    from solm.policies.value_network import ValueNetwork

BUILTIN = "builtin:"
CONFIG, WEIGHTS, CARD = "policy_config.json", "policy.safetensors", "README.md"
_KEPT_BUDGETS = 1024


class PolicyConfig(BaseModel):
    """What a policy is and where it comes from. `digest` is that of `digest_of`, in a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = 2
    base: BaseIdentity
    space: ActionSpace
    sparsity: SparsityConfig
    network: ValueConfig
    provenance: dict[str, Any] = Field(default_factory=dict)
    digest: str = ""


class TrainedPolicy:
    """A policy network with everything needed to use it again. curve: what its budgets take and lose, where measured.

    Raises `PolicyMismatchError` where network, action space and base model of `config` do not fit one another.
    """

    def __init__(
        self,
        config: PolicyConfig,
        network: "ValueNetwork | ValueWeights | None" = None,
        curve: BudgetCurve | None = None,
    ):
        self.curve = curve
        known_levels(config.network.grid, config.space)
        _check_sizes(config, config.base.layers, config.base.hidden)
        self.config = config
        self._weights = network if isinstance(network, ValueWeights) else None
        self._network = None if isinstance(network, ValueWeights) else network
        self._made: dict[bool, ValuePolicy] = {}
        self._splits = lru_cache(_KEPT_BUDGETS)(self._split)  # a server needs many; one takes a millisecond

    @property
    def network(self) -> Any:
        """The `ValueNetwork`; one that was read from a file is made when it is asked for first, because the compiled
        engine needs its weights alone."""
        if self._network is None:
            from solm.policies.value_network import ValueNetwork

            self._network = (
                ValueNetwork(self.config.network) if self._weights is None else ValueNetwork.of(self._weights)
            )
        return self._network

    def to(self, device: "torch.device") -> None:
        """Move the network to `device`."""
        self.network.to(device)
        self._made.clear()

    def policy(self, clamp: bool = True) -> ValuePolicy:
        """What decides; made once, as its price curves take long to compute. The network must not change afterwards.

        clamp: rule out actions after which a budget could no longer be met.
        """
        if clamp not in self._made:
            only = self._weights if self._network is None else None
            self._made[clamp] = ValuePolicy(only or self.network.eval(), self.config.space, clamp)
        return self._made[clamp]

    def budget(self, net: float) -> Budget:
        """The budget of net keep `net`, split over the axes so that all pay the same price.

        Raises `BudgetError` for a net keep that the action space cannot meet.
        """
        return self._splits(net)

    def budget_of_cost(self, cost: float, levels: tuple[np.ndarray, ...], rates: np.ndarray, context: int) -> Budget:
        """As `solm.core.budget.Split`."""
        return self.policy().split_cost(cost, levels, tuple(rates.tolist()), 1 - float(rates.sum()), context)

    def _split(self, net: float) -> Budget:
        Budget.from_net(net, self.config.space)  # refuses what cannot be met
        return self.policy().split(net)

    def with_space(self, space: ActionSpace) -> "TrainedPolicy":
        """The same policy choosing among other actions; raises `PolicyMismatchError` where it was not trained on
        them."""
        return TrainedPolicy(
            self.config.model_copy(update={"space": space}), self._network or self._weights or self.network, self.curve
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config, weights, curve and card to `folder`."""
        from safetensors.torch import save

        folder = Path(folder)
        weights = save({name: tensor.contiguous().cpu() for name, tensor in self.network.state_dict().items()})
        digest = digest_of(self.config.model_dump(mode="json"), weights)
        config = self.config.model_copy(update={"digest": digest})
        write_bytes(folder / WEIGHTS, weights)
        if self.curve is not None:
            write_json(folder / CURVE, self.curve.model_dump(mode="json"))
        else:
            (folder / CURVE).unlink(missing_ok=True)  # of a policy that was here before
        write_text(folder / CARD, model_card(config, self.curve))
        write_json(folder / CONFIG, config.model_dump(mode="json"))  # last: with it the folder is a policy

    @classmethod
    def from_pretrained(
        cls, name: str | Path, device: "str | torch.device" = "cpu", revision: str | None = None
    ) -> "TrainedPolicy":
        """A policy from a folder, a hub id (revision: branch, tag or commit), or one that ships with solm:
        ``builtin:smollm2-135m`` or, in the action space of a preset, ``builtin:smollm2-135m-joint-27``.

        Raises `DamagedFileError` where config or weights are damaged or of another version, `PolicyMismatchError` where
        they do not fit each other, and `SolmError` where there is no policy. What needs the base model is checked by
        `check`.
        """
        if str(name).startswith(BUILTIN):
            return _builtin(str(name).removeprefix(BUILTIN), device)
        folder = Path(name)
        if not folder.is_dir():
            folder = from_hub(str(name), revision)
        config = read_model(folder / CONFIG, PolicyConfig)
        found = read_arrays(folder / WEIGHTS)
        # Of the file, not of the model's fields: a field that is added later must not change it.
        if digest_of(read_json(folder / CONFIG), (folder / WEIGHTS).read_bytes()) != config.digest:
            raise DamagedFileError(f"{folder} is damaged: {CONFIG} and {WEIGHTS} do not match the digest in {CONFIG}")
        trained = cls(config, curve=read_model(folder / CURVE, BudgetCurve) if (folder / CURVE).is_file() else None)
        trained._weights = ValueWeights(config.network, found)
        trained._weights.check()
        if str(device) != "cpu":
            trained.to(device)  # type: ignore[arg-type]
        return trained

    def check(self, identity: BaseIdentity, shapes: ModelShapes) -> None:
        """Raises `PolicyMismatchError` unless the policy fits the base model `identity` of `shapes`: the same model, a
        decision layer that it has, its hidden size, and an allocation and thresholds of its layers and KV heads."""
        self.config.base.check(identity)
        _check_sizes(self.config, shapes.layers, shapes.hidden)
        if self.config.sparsity.allocation is not None:
            self.config.sparsity.allocation.check(shapes.layers, shapes.kv_heads)
        if self.config.sparsity.thresholds is not None:
            self.config.sparsity.thresholds.check(shapes.layers)

    def push_to_hub(self, repository: str, private: bool = False) -> str:
        """Upload to the hub repository `repository`, made if need be; its address. Raises `SolmError` if that fails."""
        import tempfile

        from httpx import HTTPError
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError

        api = HfApi()
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            try:
                api.create_repo(repository, private=private, exist_ok=True)
                return str(api.upload_folder(repo_id=repository, folder_path=folder))
            except (HFValidationError, HTTPError, OSError) as error:
                reason = first_line(error)
                raise SolmError(f"cannot upload to the hub repository {repository!r}: {reason}") from error


def shipped() -> list[str]:
    """The names of the policies that ship with solm."""
    root = Path(__file__).parent / "builtin"
    return [BUILTIN + folder.name for folder in sorted(root.iterdir()) if (folder / CONFIG).is_file()]


def digest_of(config: dict[str, Any], weights: bytes) -> str:
    """The sha256 of a policy in hexadecimal: over the JSON of its `config` without the key ``digest``, keys sorted and
    without spaces, followed by the bytes of its weights' file."""
    content = {key: value for key, value in config.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode() + weights).hexdigest()


def _check_sizes(config: PolicyConfig, layers: int, hidden: int) -> None:
    """Raises `PolicyMismatchError` unless the policy network fits a base model of `layers` and `hidden`."""
    network, allocation = config.network, config.sparsity.allocation
    if network.base_hidden != hidden:
        raise PolicyMismatchError(f"the policy network reads hidden size {network.base_hidden}, the model has {hidden}")
    if network.layer >= layers:
        raise PolicyMismatchError(
            f"the policy decides before layer {network.layer}, the model has layers 0 to {layers - 1}"
        )
    if allocation is not None:
        allocation.check(layers)


def _builtin(name: str, device: "str | torch.device") -> TrainedPolicy:
    root = Path(__file__).parent / "builtin"
    if (root / name / CONFIG).is_file():
        return TrainedPolicy.from_pretrained(root / name, device)
    # The longest name first, as one name may begin with another.
    for folder in sorted(root.iterdir(), key=lambda folder: -len(folder.name)):
        preset = name.removeprefix(folder.name + "-")
        if preset != name:
            return TrainedPolicy.from_pretrained(folder, device).with_space(ActionSpace.preset(preset))
    raise SolmError(
        f"no policy {BUILTIN}{name} ships with solm; choose {', '.join(shipped())}, alone or with -PRESET of a space"
    )


def from_hub(name: str, revision: str | None = None) -> Path:
    """The folder in the hub's cache with the policy of the repository `name`, downloaded if need be.

    Raises `SolmError` where there is no such repository, no connection, or no policy in it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG, WEIGHTS, CARD, CURVE]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise SolmError(f"no policy at {name!r}, neither a folder nor a hub repository: {reason}") from error
    if not (folder / CONFIG).is_file():
        raise SolmError(f"no policy at {name!r}: this hub repository has no {CONFIG}")
    return folder


def model_card(config: PolicyConfig, curve: BudgetCurve | None = None) -> str:
    """The README of a saved policy."""
    space = config.space
    kind = "weight" if config.sparsity.bits_site == "weights" else "activation"
    tables = {"allocation": "an allocation", "thresholds": "thresholds on channels"}
    if config.sparsity.allocation is not None and config.sparsity.allocation.has_bits:
        tables["allocation"] = "an allocation of channels and weight bits"
    tables = {name: words for name, words in tables.items() if getattr(config.sparsity, name) is not None}
    lines = [
        "---", "library_name: solm", "license: apache-2.0", f"base_model: {config.base.name}", "tags: [solm]", "---",
        "",
        f"# solm policy for {config.base.name}", "",
        f"Chooses among {len(space)} actions for every decoded token: attention keep {list(space.attention)}, "
        f"MLP keep {list(space.mlp)}, {kind} bits {list(space.bits)}. The base model stays frozen.", "",
        "```python", "import solm", "", f'lm = solm.load("{config.base.name}", policy="<this folder>")',
        'print(lm.generate("Why is the sky blue?", budget=0.85).text)', "```", "",
        f"Sparsity: `{config.sparsity.model_dump_json(exclude=set(tables))}`"
        + (f", with {' and '.join(tables.values())} (in {CONFIG})" if tables else "") + ".",
        "", *([] if curve is None else curve.markdown()), "## Training", "", *_training(config.provenance),
        "Trained on teacher-forced text only.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _training(provenance: dict[str, Any]) -> list[str]:
    """Lines about the training: the command as it was typed, then the rest of the provenance."""
    entries = {**provenance, **provenance.get("made", {})}
    entries.pop("made", None)
    command = entries.pop("command", None)
    typed = [] if command is None else ["```bash", command, "```", ""]
    parts = (
        (key, ", ".join(f"{name} {part}" for name, part in value.items()) if isinstance(value, dict) else value)
        for key, value in entries.items()
    )
    return [*typed, *(f"- {key}: {value}" for key, value in parts), ""]
