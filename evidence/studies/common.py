"""What studies share: options, held-out text, the arms that a policy is compared with, and the command line."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_serializer

from evidence.record import Record
from solm.core.budget import Budget, BudgetRequest, Budgets
from solm.core.curve import spaced_budgets
from solm.core.errors import SolmError
from solm.core.files import Parts, resumable, write_text
from solm.core.provenance import plain_name, plain_names
from solm.evaluation.arms import Arm, BaselineRequest, constant, static_arms
from solm.evaluation.perplexity import EvaluationSettings, held_out_windows
from solm.evaluation.texts import TokenStream, token_stream
from solm.runtime.language_model import LanguageModel
from solm.runtime.load import load

AUTO = 3
"""Budgets of ``auto``."""


def _split(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Numbers = Annotated[tuple[float, ...], BeforeValidator(_split), Field(min_length=1)]
Names = Annotated[tuple[str, ...], BeforeValidator(_split), Field(min_length=1)]


class Options(BaseModel):
    """Options of every study; the fields of a subclass are its command line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field("builtin:smollm2-135m", description="Hub id, folder, .gguf file or builtin:smollm2-135m.")
    policy: str | None = Field(None, description="Folder or hub id of a trained policy; auto: the one that ships.")
    backend: str = Field("cpu", description="cpu, or torch.")
    dtype: str = Field("auto", description="auto, float32, bfloat16 or float16.")
    timings: Path | None = Field(None, description="Step times, from solm bench --out; by default the policy's.")
    seed: int = Field(0, ge=0, description="Seed of all random numbers.")

    @field_serializer("model", "policy", "timings", "gsm8k", "humaneval", "chat", "needles", check_fields=False)
    def _without_folder(self, name: str | Path | None) -> str | None:
        """As results name it: of a path the last part."""
        return None if name is None else plain_name(str(name))

    @field_serializer("data", check_fields=False)
    def _without_folders(self, names: tuple[str, ...]) -> list[str]:
        return plain_names(names)

    def load(self) -> LanguageModel:
        """The model under the policy."""
        return load(self.model, self.policy, backend=self.backend, dtype=self.dtype, timings=self.timings)


class TextOptions(Options):
    """Options of studies that read held-out text."""

    data: Names = Field(description="Sources of held-out text, separated by commas.")
    texts: int = Field(48, ge=1, description="Number of texts.")
    context: int = Field(512, ge=1, description="Tokens read densely before the controlled ones.")
    length: int = Field(128, ge=1, description="Controlled tokens of a text.")

    def windows(self, lm: LanguageModel, context: int | None = None) -> tuple[torch.Tensor, list[str]]:
        """Held-out windows [texts, context + length + 1], and the fingerprints of their sources."""
        assert lm.tokenizer is not None
        streams: list[TokenStream] = [token_stream(source, lm.tokenizer) for source in self.data]
        settings = EvaluationSettings(
            budgets=(1.0,), texts=self.texts, context=context or self.context, length=self.length, seed=self.seed
        )
        return held_out_windows(streams, settings), [stream.fingerprint for stream in streams]


class ComparedOptions(Options):
    """Options of studies that compare what a policy writes with what baselines write at equal shares."""

    policy: str = Field("auto", description="Folder or hub id of a trained policy; auto: the one that ships.")
    budgets: str = Field("auto", description="Shares of the dense step's time (net keeps without step times), or auto.")
    baselines: Names = Field(("constant", "uniform"), description="Some of constant, uniform, allocated.")

    def values(self, offer: Budgets, seen: int) -> tuple[float, ...]:
        """The budgets as numbers; raises `BudgetError` for one that steps after `seen` tokens cannot meet."""
        if self.budgets == "auto":
            return spaced_budgets(offer.lowest_net if offer.timings is None else offer.time_floor(seen), AUTO)
        values = tuple(map(float, self.budgets.split(",")))
        for value in values:
            budget_at(offer, value, seen)
        return values

    def arms(self, lm: LanguageModel) -> dict[str, Arm]:
        """The baselines by name; ``allocated`` is left out where the model has no allocation."""
        found = static_arms(lm, lm.space) | {"constant": constant(BaselineRequest(lm, lm.space))}
        return {name: found[name] for name in self.baselines if name in found}


def budget_at(offer: Budgets, share: float, seen: int, clamp: bool = False) -> Budget:
    """The budget that `share` stands for in steps after `seen` tokens. clamp: the least there is where it is less."""
    return offer.budget(BudgetRequest("keep" if offer.timings is None else "compute", share), seen, clamp=clamp)


def kept(partial: Path | None, lm: LanguageModel, settings: dict[str, Any]) -> Parts:
    """The finished parts of an interrupted run of this model, policy and settings."""
    digest = None if lm.trained is None else lm.trained.config.digest
    timings = None if lm.timings is None else lm.timings.model_dump(mode="json")
    return Parts(partial, [settings, lm.identity.model_dump(mode="json"), digest, timings])


def progress(what: str, done: int, total: int) -> None:
    print(f"{what}: {done}/{total}", file=sys.stderr, flush=True)


def main(
    options: type[BaseModel],
    measure: Callable[[Any, Path | None], Record],
    lines: Callable[[Record], list[str]],
    about: str | None,
) -> None:
    """Run a study from the command line: its options' fields, and --out, beside which an interrupted run is kept."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, field in options.model_fields.items():
        how: dict[str, Any] = {"required": field.is_required()}
        if field.annotation is bool:
            how = {"action": "store_true"}
        parser.add_argument(
            f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, help=field.description, dest=name, **how
        )
    parser.add_argument("--out", type=Path, help="write the result here, as JSON")
    given = vars(parser.parse_args())
    out = given.pop("out")
    try:
        with resumable(out) as partial:
            found = measure(options.model_validate(given), partial)
            if out is not None:
                write_text(out, found.model_dump_json(indent=2) + "\n")
    except ValidationError as error:
        first = error.errors()[0]
        parser.error(f"--{'.'.join(map(str, first['loc'])).replace('_', '-')}: {first['msg']}")
    except SolmError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, "interrupted\n")
    print("\n".join(lines(found)))
