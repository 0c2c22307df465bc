"""The studies by name, and what a study's module offers."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Protocol, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_serializer

from solm.core.cost import ModelShapes
from solm.core.errors import SolmError
from solm.core.provenance import plain_name, plain_names
from solm.core.seeds import MOST_SEED
from solm.data.windows import TokenStream, token_stream
from solm.evaluation.pictures import Kind
from solm.evaluation.result import Record
from solm.policies.artifact import TrainedPolicy
from solm.runtime.language_model import LanguageModel
from solm.runtime.load import load

Progress = Callable[[str, int, int], None]
"""Called with what is being worked on, the parts done and in all."""


def _split(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Numbers = Annotated[tuple[float, ...], BeforeValidator(_split), Field(min_length=1)]
Names = Annotated[tuple[str, ...], BeforeValidator(_split), Field(min_length=1)]


class ModelOptions(BaseModel):
    """What every study can be told. A study's own options extend these; `solm study NAME --help` shows them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field("builtin:smollm2-135m", description="Hub id, folder, .gguf file or builtin:smollm2-135m.")
    seed: int = Field(0, ge=0, le=MOST_SEED, description="Seed of all random numbers.")
    dtype: str = Field("auto", description="auto, float32, bfloat16 or float16.")
    revision: str | None = Field(None, description="Branch, tag or commit of a model on the hub.")
    trust_remote_code: bool = Field(False, description="Run code that comes with a model. Only for models you trust.")

    @field_serializer(
        "model", "policy", "timings", "allocation", "runs", "fit", "tasks", "off_grid", "gsm8k", "humaneval", "chat",
        check_fields=False,
    )  # fmt: skip
    def _without_folder(self, name: str | Path | None) -> str | None:
        """As results name it. A study has some of these fields."""
        return None if name is None else plain_name(str(name))

    @field_serializer("data", "train", check_fields=False)
    def _without_folders(self, names: tuple[str, ...]) -> list[str]:
        """The same of sources of text."""
        return plain_names(names)

    def load(self, policy: str | TrainedPolicy | None = None, **options: Any) -> LanguageModel:
        """The model, by default on the torch backend. options: of `solm.load`, in place of these."""
        known = {"dtype": self.dtype, "revision": self.revision, "trust_remote_code": self.trust_remote_code}
        return load(self.model, policy, **{"backend": "torch", **known, **options})

    def check(self, shapes: ModelShapes, context: int | None, trained: TrainedPolicy | None) -> None:
        """Check what can be checked before a model is loaded, of these shapes and with room for `context` tokens (None:
        not known). Raises `SolmError`."""


def check_layer(layer: int, shapes: ModelShapes) -> None:
    """Raises `SolmError` for a --layer that a model of these shapes lacks."""
    if layer >= shapes.layers:
        raise SolmError(f"--layer: {layer} is out of range: this model has layers 0 to {shapes.layers - 1}")


class StudyOptions(ModelOptions):
    """Those of studies that read held-out text."""

    data: Names = Field(description="Sources of held-out text, separated by commas.")
    texts: int = Field(48, ge=1, description="Number of texts.")
    context: int = Field(512, ge=1, description="Tokens read densely before the controlled ones.")
    length: int = Field(128, ge=1, description="Controlled tokens per text that are scored.")

    def streams(self, lm: LanguageModel) -> list[TokenStream]:
        """The held-out text as the model's tokens, a stream for every source."""
        assert lm.tokenizer is not None
        return [token_stream(source, lm.tokenizer) for source in self.data]


class StudyModule(Protocol):
    """What a study's module has. `partial` is a file that keeps what an interrupted run has found."""

    Options: type[ModelOptions]

    def run(self, options: Any, partial: Path | None, progress: Progress) -> Record: ...

    def lines(self, found: Record) -> list[str]:
        """What was found, for a terminal."""

    def plot(self, found: Record, kind: Kind) -> bytes:
        """A picture of it."""


@dataclass(frozen=True)
class Study:
    """A study's module, imported when it is asked for, and what it asks in one line."""

    path: str
    about: str

    def load(self) -> StudyModule:
        return cast(StudyModule, import_module(self.path))


STUDIES = {
    "kv-drift": Study("solm.research.kv_drift", "How much dense steps lose after a burst of cheap ones, and how long."),
    "domains": Study("solm.research.domains", "What a policy gains, spends and predicts on text of other sources."),
    "best-of": Study("solm.research.best_of", "Is the best of many random schedules estimated well from few?"),
    "precision": Study("solm.research.precision", "Is bfloat16 good enough to train on?"),
    "free-running": Study("solm.research.free_running", "Text generated under a budget, judged by the dense model."),
    "graded": Study("solm.research.graded", "Replies written under a budget: problems solved, code that passes tests."),
    "long-context": Study("solm.research.long_context", "Quality against the share of a long KV cache that is read."),
}


def study(name: str) -> Study:
    """The study called `name`; raises `SolmError` for an unknown one."""
    if name not in STUDIES:
        raise SolmError(f"unknown study {name!r}; choose among {', '.join(STUDIES)}")
    return STUDIES[name]
