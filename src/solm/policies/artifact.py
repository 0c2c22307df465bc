"""A policy on disk: ``policy_config.json``, ``policy.safetensors`` and a model card. The owner of that format."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save

from solm.core.actions import ActionSpace
from solm.core.budget import Budget
from solm.core.errors import DamagedFileError, PolicyMismatchError, SolmError
from solm.core.files import read_model, read_tensors, write_bytes, write_json, write_text
from solm.core.sparsity import SparsityConfig
from solm.policies.learned import LearnedPolicy
from solm.policies.network import NetworkConfig, PolicyNetwork
from solm.policies.value_policy import ValueConfig, ValueNetwork, ValuePolicy, known_levels

BUILTIN = "builtin:"
CONFIG, WEIGHTS, CARD = "policy_config.json", "policy.safetensors", "README.md"


class BaseIdentity(BaseModel):
    """Which base model a policy belongs to. `sample` are weights of its last norm or embedding, compared loosely:
    dtype and weight quantisation may differ, the model may not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    family: str
    hidden: int
    layers: int
    vocabulary: int
    sample: tuple[float, ...]

    def check(self, other: "BaseIdentity") -> None:
        """Raises `PolicyMismatchError` unless `other` is the same base model."""
        for field in ("family", "hidden", "layers", "vocabulary"):
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine != theirs:
                raise PolicyMismatchError(
                    f"this policy belongs to {self.name!r} ({field} {mine}); the model given has {field} {theirs}"
                )
        ours, theirs = torch.tensor(self.sample), torch.tensor(other.sample)
        if ours.shape != theirs.shape or (ours - theirs).abs().max() > 0.05 * ours.abs().max():
            raise PolicyMismatchError(
                f"this policy belongs to {self.name!r}; the model given has the same shapes but other weights"
            )


class PolicyConfig(BaseModel):
    """What a policy is and where it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    base: BaseIdentity
    space: ActionSpace
    sparsity: SparsityConfig
    network: NetworkConfig | ValueConfig
    provenance: dict[str, Any] = Field(default_factory=dict)
    weights_sha256: str = ""


class TrainedPolicy:
    """A policy network with everything needed to use it again."""

    def __init__(self, config: PolicyConfig, network: PolicyNetwork | ValueNetwork | None = None):
        sizes = config.network
        if isinstance(sizes, ValueConfig):
            known_levels(sizes.grid, config.space)
        elif sizes.actions != len(config.space):
            raise PolicyMismatchError(f"the network has {sizes.actions} actions, its action space {len(config.space)}")
        self.config = config
        if network is None:
            network = ValueNetwork(sizes) if isinstance(sizes, ValueConfig) else PolicyNetwork(sizes)
        self.network = network
        self._made: dict[bool, ValuePolicy] = {}

    def policy(
        self, decision: Literal["sample", "greedy"] = "sample", clamp: bool = True
    ) -> LearnedPolicy | ValuePolicy:
        """What decides; `decision` is for policies that are distributions, a value policy takes the best action.

        A value policy is made once: its price curves take a while, and every request asks. The network must not
        change afterwards.
        """
        if isinstance(self.network, ValueNetwork):
            if clamp not in self._made:
                self._made[clamp] = ValuePolicy(self.network.eval(), self.config.space, clamp)
            return self._made[clamp]
        return LearnedPolicy(self.network.eval(), self.config.space, decision, clamp)

    def budget(self, budget: "float | str | Budget") -> Budget:
        """`budget` per axis. A value policy splits a net keep over the axes so that all pay one price."""
        parsed = Budget.parse(budget, self.config.space)
        policy = self.policy()
        if isinstance(policy, LearnedPolicy) or isinstance(budget, Budget) or "=" in str(budget):
            return parsed
        return policy.split(parsed.net)

    def with_space(self, space: ActionSpace) -> "TrainedPolicy":
        """The same policy choosing among other actions; raises `PolicyMismatchError` where it was not trained on
        them."""
        return TrainedPolicy(self.config.model_copy(update={"space": space}), self.network)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config, weights and card to `folder`."""
        folder = Path(folder)
        weights = save({name: tensor.contiguous().cpu() for name, tensor in self.network.state_dict().items()})
        config = self.config.model_copy(update={"weights_sha256": hashlib.sha256(weights).hexdigest()})
        write_bytes(folder / WEIGHTS, weights)
        write_json(folder / CONFIG, config.model_dump(mode="json"))
        write_text(folder / CARD, model_card(config))

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str | torch.device = "cpu") -> "TrainedPolicy":
        """A policy from a folder, a hub id, or one that ships with solm: ``builtin:smollm2-135m`` or, in the action
        space of a preset, ``builtin:smollm2-135m-joint-27``.

        Raises `DamagedFileError` for any damage and `SolmError` where there is none.
        """
        if str(name).startswith(BUILTIN):
            return _builtin(str(name).removeprefix(BUILTIN), device)
        folder = Path(name)
        if not folder.is_dir():
            folder = _from_hub(str(name))
        config = read_model(folder / CONFIG, PolicyConfig)
        tensors = read_tensors(folder / WEIGHTS)
        if hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest() != config.weights_sha256:
            raise DamagedFileError(f"{folder / WEIGHTS} does not match the checksum in {CONFIG}")
        trained = cls(config)
        try:
            trained.network.load_state_dict(tensors)
        except RuntimeError as error:
            raise DamagedFileError(
                f"{folder / WEIGHTS} does not fit {CONFIG}: {str(error).splitlines()[-1]}"
            ) from error
        trained.network.to(device)
        return trained

    def push_to_hub(self, repository: str, private: bool = False) -> str:
        """Upload to the hub repository `repository`, made if need be; its address."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi()
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            api.create_repo(repository, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repository, folder_path=folder))


def shipped() -> list[str]:
    """The names of the policies that ship with solm."""
    root = Path(__file__).parent / "builtin"
    return [BUILTIN + folder.name for folder in sorted(root.iterdir()) if (folder / CONFIG).is_file()]


def _builtin(name: str, device: str | torch.device) -> TrainedPolicy:
    root = Path(__file__).parent / "builtin"
    if (root / name / CONFIG).is_file():
        return TrainedPolicy.from_pretrained(root / name, device)
    for folder in sorted(root.iterdir(), key=lambda folder: -len(folder.name)):  # one's name may begin another's
        preset = name.removeprefix(folder.name + "-")
        if preset != name:
            return TrainedPolicy.from_pretrained(folder, device).with_space(ActionSpace.preset(preset))
    raise SolmError(
        f"no policy {BUILTIN}{name} ships with solm; choose {', '.join(shipped())}, alone or with -PRESET of a space"
    )


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, CARD]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SolmError(f"no policy at {name!r}, neither a folder nor a hub repository: {reason}") from error


def model_card(config: PolicyConfig) -> str:
    """The README of a saved policy."""
    space = config.space
    kind = "weight" if config.sparsity.bits_site == "weights" else "activation"
    lines = [
        "---", "library_name: solm", "license: apache-2.0", f"base_model: {config.base.name}", "tags: [solm]", "---",
        "",
        f"# solm policy for {config.base.name}", "",
        f"Chooses among {len(space)} actions for every decoded token: attention keep {list(space.attention)}, "
        f"MLP keep {list(space.mlp)}, {kind} bits {list(space.bits)}. The base model stays frozen.", "",
        "```python", "import solm", "", f'lm = solm.load("{config.base.name}", policy="<this folder>")',
        'print(lm.generate("Why is the sky blue?", budget=0.6).text)', "```", "",
        f"SparsityConfig: `{config.sparsity.model_dump_json(exclude={'allocation'})}`"
        + ("" if config.sparsity.allocation is None else f", dealt out by an allocation (in {CONFIG})") + ".",
        "", "## Training", "", *_training(config.provenance),
        "Trained on teacher-forced text only; levels below the lowest ones are not chosen.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _training(provenance: dict[str, Any]) -> list[str]:
    """How the policy came to be: the command as it was typed, then everything else that is known."""
    told = {**provenance, **provenance.get("made", {})}
    told.pop("made", None)
    command = told.pop("command", None)
    typed = [] if command is None else ["```bash", command, "```", ""]
    parts = (
        (key, ", ".join(f"{name} {part}" for name, part in value.items()) if isinstance(value, dict) else value)
        for key, value in told.items()
    )
    return [*typed, *(f"- {key}: {value}" for key, value in parts), ""]
