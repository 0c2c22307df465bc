"""A policy on disk: ``policy_config.json``, ``policy.safetensors`` and a model card. The owner of that format."""

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from solm.core.actions import ActionSpace
from solm.core.budget import Budget
from solm.core.cost import ModelShapes
from solm.core.curve import CURVE, BudgetCurve
from solm.core.errors import DamagedFileError, PolicyMismatchError, SolmError, first_line
from solm.core.files import read_arrays, read_json, read_model, write_bytes, write_json, write_text
from solm.core.sparsity import SparsityConfig
from solm.policies.identity import BaseIdentity as BaseIdentity
from solm.policies.value_policy import ValuePolicy, known_levels
from solm.policies.value_weights import ValueConfig, ValueWeights

if TYPE_CHECKING:
    import torch

    from solm.policies.value_network import ValueNetwork

BUILTIN, _SHIPPED = "builtin:", Path(__file__).parent / "builtin"
CONFIG, WEIGHTS, CARD = "policy_config.json", "policy.safetensors", "README.md"
CUSTOM = "custom_generate/generate.py"
"""Where transformers looks for decoding loops of a hub repository."""


class PolicyConfig(BaseModel, frozen=True, extra="forbid"):
    """What a policy is and where it comes from. `digest` is that of `digest_of`, in a file."""

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
        network: "ValueNetwork | ValueWeights",
        curve: BudgetCurve | None = None,
    ):
        self.curve = curve
        sizes, base = config.network, config.base
        known_levels(sizes.grid, config.space)
        if sizes.base_hidden != base.hidden:
            raise PolicyMismatchError(
                f"the policy network reads hidden size {sizes.base_hidden}, the model has {base.hidden}"
            )
        if sizes.layer >= base.layers:
            raise PolicyMismatchError(
                f"the policy decides before layer {sizes.layer}, the model has layers 0 to {base.layers - 1}"
            )
        config.sparsity.check(base.layers)
        self.config = config
        self._network = network
        self._policy: ValuePolicy | None = None

    @property
    def network(self) -> "ValueNetwork":
        """The network of `policy`."""
        return self.policy().network

    def to(self, device: "torch.device") -> None:
        """Move the network to `device`."""
        self.network.to(device)

    def policy(self) -> ValuePolicy:
        """What decides; made once, as its price curves take long to compute. The network must not change afterwards."""
        if self._policy is None:
            self._policy = ValuePolicy(self._network, self.config.space)
        return self._policy

    def split(
        self, cost: float, rates: np.ndarray, levels: tuple[np.ndarray, ...], context: int | None = None
    ) -> Budget:
        """As `solm.core.budget.Split`."""
        return self.policy().split(cost, rates, levels, context)

    def with_space(self, space: ActionSpace) -> "TrainedPolicy":
        """The same policy choosing among other actions; raises `PolicyMismatchError` where it was not trained on
        them."""
        return TrainedPolicy(self.config.model_copy(update={"space": space}), self._network, self.curve)

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
        """A policy from a folder, a hub id (revision: branch, tag or commit), or one that ships with solm, such as
        ``builtin:smollm2-135m-cpu``.

        Raises `DamagedFileError` where config or weights are damaged or of another version, `PolicyMismatchError` where
        they do not fit each other, and `SolmError` where there is no policy. What needs the base model is checked by
        `check`.
        """
        folder = Path(name)
        if str(name).startswith(BUILTIN):
            if name not in shipped():
                raise SolmError(f"no policy {name} ships with solm; choose {' or '.join(shipped())}")
            folder = _SHIPPED / str(name).removeprefix(BUILTIN)
        elif not folder.is_dir():
            folder = from_hub(str(name), revision)
        config = read_model(folder / CONFIG, PolicyConfig)
        weights = ValueWeights(config.network, read_arrays(folder / WEIGHTS))
        # Of the file, not of the model's fields: a field that is added later must not change it.
        if digest_of(read_json(folder / CONFIG), (folder / WEIGHTS).read_bytes()) != config.digest:
            raise DamagedFileError(f"{folder} is damaged: {CONFIG} and {WEIGHTS} do not match the digest in {CONFIG}")
        curve = read_model(folder / CURVE, BudgetCurve) if (folder / CURVE).is_file() else None
        trained = cls(config, weights, curve)
        weights.check()
        if str(device) != "cpu":
            trained.to(device)  # type: ignore[arg-type]
        return trained

    def check(self, identity: BaseIdentity, shapes: ModelShapes) -> None:
        """Raises `PolicyMismatchError` unless the policy fits the base model `identity` of `shapes`: the same model, a
        decision layer that it has, its hidden size, and an allocation and thresholds of its layers and KV heads."""
        self.config.base.check(identity)
        self.config.sparsity.check(shapes.layers, shapes.kv_heads)

    def push_to_hub(self, repository: str, private: bool = False) -> str:
        """Upload to the hub repository `repository`, made if need be; its address. Raises `SolmError` if that fails.

        With it goes the code by which transformers' ``model.generate(..., custom_generate=repository, budget=0.7)``
        decodes under the policy, where a user trusts remote code.
        """
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi()
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            write_bytes(Path(folder) / CUSTOM, _CUSTOM_GENERATE.format(repository=repository).encode())
            try:
                api.create_repo(repository, private=private, exist_ok=True)
                return str(api.upload_folder(repo_id=repository, folder_path=folder))
            except Exception as error:  # also of the library by which this version of the hub's sends requests
                reason = first_line(error)
                raise SolmError(f"cannot upload to the hub repository {repository!r}: {reason}") from error


_HUB_ID = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}")
"""A name that the hub takes for a model's in a card; the identity of a base model has no paths of folders."""
_CUSTOM_GENERATE = '''"""Decoding under the solm policy of this repository; needs the package solm."""

import solm


def generate(model, budget=None, streamer=None, **given):
    """What `model.generate` returns, under a compute budget in any form that solm takes; None: dense."""
    loop = solm.custom_generate("{repository}", budget, streamer=streamer)
    return model.generate(**given, custom_generate=loop)
'''


def shipped() -> list[str]:
    """The names of the policies that ship with solm."""
    return [BUILTIN + folder.name for folder in sorted(_SHIPPED.iterdir()) if (folder / CONFIG).is_file()]


def digest_of(config: dict[str, Any], weights: bytes) -> str:
    """The sha256 of a policy in hexadecimal: over the JSON of its `config` without the key ``digest``, keys sorted and
    without spaces, followed by the bytes of its weights' file."""
    content = {key: value for key, value in config.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode() + weights).hexdigest()


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
    known = {"allocation": "an allocation", "thresholds": "thresholds"}
    tables = {name: words for name, words in known.items() if getattr(config.sparsity, name) is not None}
    lines = [
        "---", "library_name: solm", "license: apache-2.0",
        *([f"base_model: {config.base.name}"] if _HUB_ID.fullmatch(config.base.name) else []),
        "tags: [solm]", "---", "",
        f"# solm policy for {config.base.name}", "",
        f"Chooses among {len(space)} actions for every decoded token: attention keep {list(space.attention)}, "
        f"MLP keep {list(space.mlp)}, {kind} bits {list(space.bits)}. The base model stays frozen.", "",
        "```python", "import solm", "", f'lm = solm.load("{config.base.name}", policy="<this folder>")',
        'print(lm.generate("Why is the sky blue?", budget=0.85).text)', "```", "",
        f"Sparsity: `{config.sparsity.model_dump_json(exclude=set(tables))}`"
        + (f", with {' and '.join(tables.values())} (in {CONFIG})" if tables else "") + ".",
        "", *([] if curve is None else curve.markdown()), "## Training", "",
        "Trained on teacher-forced text only.", "", "```json", json.dumps(config.provenance, indent=2), "```", "",
    ]  # fmt: skip
    return "\n".join(lines)
