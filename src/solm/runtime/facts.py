"""What is known of a model without its weights, and which policy of solm's own fits it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solm.core.errors import SolmError

if TYPE_CHECKING:
    from solm.backends.cpu.files.spec import ModelSpec
    from solm.core.cost import ModelShapes
    from solm.policies.artifact import TrainedPolicy
    from solm.policies.identity import BaseIdentity

AUTO = "auto"
"""In place of a policy's name: the one that ships for the model."""


@dataclass(frozen=True)
class ModelFacts:
    """context: tokens that the model can read; None: not known."""

    family: str
    context: int | None
    shapes: "ModelShapes"

    def identity(self, like: "BaseIdentity") -> "BaseIdentity":
        """`like` with the architecture of this model, whose weights are not known yet."""
        sizes = {"hidden": self.shapes.hidden, "layers": self.shapes.layers, "vocabulary": self.shapes.vocabulary}
        return like.model_copy(update={"family": self.family, "sample": (), **sizes})


def model_facts(
    model: str, revision: str | None = None, trust_remote_code: bool = False, on_engine: bool = False
) -> ModelFacts:
    """From the files of a model called `model`, without its weights. on_engine: as the cpu backend reads them, if it
    can. Raises `SolmError` for files that cannot be read or hold no model that is supported."""
    found = _engine_facts(model, revision) if on_engine and not trust_remote_code else None
    if found is not None:
        return found
    from solm.backends.names import not_loadable
    from solm.backends.torch.load import base_config

    config = base_config(model, trust_remote_code, revision)
    try:
        return facts_of(config)
    except (TypeError, AttributeError, ArithmeticError) as error:  # sizes that make no sense
        raise not_loadable(model, error) from error


def facts_of(config: Any) -> ModelFacts:
    """From a configuration of transformers."""
    from solm.backends.torch.families import model_shapes

    text = config.get_text_config(decoder=True)
    context = getattr(text, "max_position_embeddings", None)
    return ModelFacts(str(text.model_type), context, model_shapes(text, gated=True))


def _engine_facts(model: str, revision: str | None) -> ModelFacts | None:
    """The same as the cpu backend describes it; None for a model that it does not know or cannot read."""
    from solm.backends.cpu.engine import shapes_of
    from solm.backends.cpu.files.sources import spec_of

    try:
        spec = spec_of(model, revision)
    except SolmError:
        return None
    return ModelFacts(spec.family, spec.context, shapes_of(spec))


def policy_called(name: str | Path, facts: Callable[[], ModelFacts]) -> "TrainedPolicy":
    """The trained policy called `name`: a folder, hub id or ``builtin:...``, or ``auto``. Errors as for both."""
    from solm.policies.artifact import TrainedPolicy

    return TrainedPolicy.from_pretrained(shipped_policy(facts()) if name == AUTO else name)


def shipped_policy(facts: ModelFacts) -> str:
    """The name of the policy that ships for such a model; of several one with a measured curve, or made for the cpu
    backend. Raises `SolmError` where none does."""
    from solm.policies.artifact import TrainedPolicy, shipped

    known = {name: TrainedPolicy.from_pretrained(name) for name in shipped()}
    bases = {name: each.config.base for name, each in known.items()}
    found = [name for name, base in bases.items() if base.difference_of_shape(facts.identity(base)) is None]
    if not found:
        raise SolmError(f"no policy ships for this {facts.family} model; solm fit makes one for any")
    return max(found, key=lambda name: (known[name].curve is not None, known[name].config.sparsity.hidden_power))


def generation_options(name: str, revision: str | None, spec: "ModelSpec") -> dict[str, Any]:
    """A folder's own generation options, or the tokens that end a text."""
    from solm.backends.names import folder_of, gguf_of
    from solm.core.files import read_object

    if gguf_of(name) is None:
        path = folder_of(name, revision) / "generation_config.json"
        if path.is_file():
            return {
                key: value for key, value in read_object(path).items() if value is not None and not key.startswith("_")
            }
    return {"bos_token_id": spec.bos, "eos_token_id": list(spec.eos) or None}
