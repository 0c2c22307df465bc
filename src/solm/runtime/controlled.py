"""A model on a backend with its policy: sessions, budgets, and what steps cost."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from solm.backends.cpu.backend import CpuBackend
from solm.backends.machine import default_threads
from solm.backends.session import AnyPolicy, Backend, Session
from solm.backends.weight_sample import spread
from solm.core.actions import AXES, ActionSpace
from solm.core.arrays import as_numpy
from solm.core.budget import Budget, BudgetLike, Budgets
from solm.core.clock import RunningClock, StepClock
from solm.core.cost import ModelShapes
from solm.core.energy import EnergyMeter
from solm.core.errors import SolmError
from solm.core.provenance import plain_name
from solm.core.sparsity import SparsityConfig
from solm.policies.artifact import TrainedPolicy
from solm.policies.calibration import Calibration
from solm.policies.identity import BaseIdentity, WeightSample
from solm.policies.schedules import Dense, Policy, static
from solm.runtime.grammars import Compiler
from solm.runtime.guess import Guesser
from solm.runtime.prefixes import PrefixCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KEPT = 128e6
"""Bytes of a draft model's keys and values."""
UNTRAINED: dict[str, Callable[[ActionSpace, SparsityConfig], Policy]] = {
    "dense": lambda space, sparsity: Dense(space), "static": static,
}  # fmt: skip
"""Policies that depend on the budget alone, by name."""


def sparsity_of(policy: TrainedPolicy | None, sparsity: SparsityConfig | str | None = None) -> SparsityConfig:
    """How actions are carried out: as asked, else as the policy was trained, else the default.

    sparsity: a config, or the name of a preset. Raises `SolmError` for anything else.
    """
    if sparsity is None:
        return SparsityConfig() if policy is None else policy.config.sparsity
    if isinstance(sparsity, str):
        return SparsityConfig.preset(sparsity)
    if not isinstance(sparsity, SparsityConfig):
        raise SolmError(f"sparsity must be a SparsityConfig or the name of a preset, got {type(sparsity).__name__}")
    return sparsity


def untrained_space(sparsity: SparsityConfig, on_engine: bool) -> ActionSpace:
    """The widest actions that the compiled engine, or else torch, can carry out under these sparsity rules."""
    if sparsity.bits_site == "weights":
        return ActionSpace.preset("nested")
    return ActionSpace.preset("cpu-wide" if on_engine else "fine")


class ControlledModel:
    """A frozen model on a backend, with its tokenizer and, where given, its policy. Also a context manager.

    timings: what steps take, for budgets in time, where that is to stay as it is. clock: what they take on this
    machine, once that was measured. calibration: of a model without a policy, whose rules it has. Raises
    `PolicyMismatchError` for a policy or an allocation that does not fit the model, or timings of another model or
    backend, and `UnsupportedModelError` for a policy that chooses on an axis that cannot be controlled on the model.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Any = None,
        policy: TrainedPolicy | None = None,
        sparsity: SparsityConfig | str | None = None,
        name: str = "",
        timings: StepClock | None = None,
        model: "PreTrainedModel | None" = None,
        generation: Mapping[str, Any] | None = None,
    ):
        """tokenizer: transformers' or `solm.backends.tokenizer.Tokenizer`. model: the transformers model, where the
        backend does not hold it. generation: the model's own generation options, where there is no such model."""
        self.backend, self.tokenizer, self.trained = backend, tokenizer, policy
        self._model = getattr(backend, "model", model)
        self._generation = dict(generation or {})
        self.name = plain_name(name or self.model.config._name_or_path)
        self.sparsity = sparsity_of(policy, sparsity)
        if policy is not None:
            policy.check(self.identity, backend.shapes)
            self.check_space(policy.config.space)
            if not self.beside_engine:
                policy.to(backend.device)
        self.sparsity.check(backend.shapes.layers, backend.shapes.kv_heads)
        if timings is not None:
            timings.check(self.name, backend.name)
        self._given = timings
        self.guesser = Guesser()
        """What replies learn about guesses, for later ones."""
        self.draft: ControlledModel | None = None
        """A smaller model of the same vocabulary that guesses what this one will choose."""
        on_processor = self.beside_engine or backend.device.type == "cpu"
        self.meter = EnergyMeter.found() if on_processor else None
        """Of the energy that steps take; None where nothing tells it."""
        self.clock: RunningClock | None = None
        self.calibration: Calibration | None = None
        self._policies: dict[tuple[str, ActionSpace | None], AnyPolicy] = {}
        self._budgets: dict[tuple[ActionSpace, int, bool], Budgets] = {}
        self._budgets_by: StepClock | None = None
        """Their step times."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Give the model back exactly as it was."""
        self.backend.detach()
        if self.draft is not None:
            self.draft.detach()

    def with_policy(self, policy: TrainedPolicy | None, sparsity: SparsityConfig | str | None = None) -> Self:
        """The same model under another policy; `detach` of either gives the model back."""
        made = type(self)(
            self.backend, self.tokenizer, policy, sparsity, self.name, self._given, self._model, self._generation
        )
        made.guesser, made.draft, made.meter = self.guesser, self.draft, self.meter
        return made

    @property
    def model(self) -> Any:
        """The transformers model. Raises `SolmError` where none is in memory."""
        if self._model is None:
            raise SolmError(f"{self.name} has no transformers model in memory; load it with the torch backend")
        return self._model

    @property
    def generation_options(self) -> dict[str, Any]:
        """The model's own generation options by transformers' names, as far as they are set."""
        if self._model is None:
            return dict(self._generation)
        own = self._model.generation_config.to_dict()
        return {name: value for name, value in own.items() if value is not None}

    @cached_property
    def prefixes(self) -> PrefixCache:
        """Prompts that are kept where this is a draft model, whose rows come and go with those of batches."""
        return PrefixCache(_KEPT, self.sparsity.page_size)

    @cached_property
    def compiler(self) -> Compiler:
        """What makes grammars into constraints for this model's tokens. Raises `SolmError` where nothing can."""
        if self.tokenizer is None:
            raise SolmError("a grammar needs a tokenizer; pass one to attach")
        ends = self.generation_options.get("eos_token_id")
        return Compiler(
            self.tokenizer, self.shapes.vocabulary, ends if isinstance(ends, list) else [] if ends is None else [ends]
        )

    @property
    def beside_engine(self) -> bool:
        """Whether steps run on the compiled engine, whose threads must not be disturbed by torch's."""
        return self.backend.name.startswith("cpu")

    @property
    def threads(self) -> int:
        """Threads that steps run on."""
        return self.backend.threads if isinstance(self.backend, CpuBackend) else default_threads()

    @property
    def timings(self) -> StepClock | None:
        """Step times for budgets in time: those that were given, else this machine's where they were measured, else
        those that the policy brings, wherever they were measured."""
        if self._given is not None or self.clock is not None:
            return self._given or self.clock.now  # type: ignore[union-attr]
        return None if self.trained is None or self.trained.curve is None else self.trained.curve.clock

    @timings.setter
    def timings(self, timings: StepClock | None) -> None:
        self._given = timings

    @property
    def shapes(self) -> ModelShapes:
        return self.backend.shapes

    @property
    def context(self) -> int | None:
        """Tokens that the model's context holds, where its configuration says so."""
        return self.backend.context

    @property
    def identity(self) -> BaseIdentity:
        """What a policy for this model must match."""
        shapes = self.shapes
        embedding = as_numpy(self.backend.embed(spread(shapes.vocabulary))).astype(np.float32)
        return BaseIdentity(
            name=self.name,
            family=self.backend.capability.family,
            hidden=shapes.hidden,
            layers=shapes.layers,
            vocabulary=shapes.vocabulary,
            weights=WeightSample.of(embedding[:, :16], **self.backend.sample_weights()),
        )

    @property
    def space(self) -> ActionSpace:
        """The actions that budgets are checked against: the policy's; without one, all that the backend can carry out
        on this model under these sparsity rules."""
        if self.trained is not None:
            return self.trained.config.space
        found, able = untrained_space(self.sparsity, self.beside_engine), self.backend.capability.axes
        return found.model_copy(update={axis: getattr(found, axis)[-1:] for axis in AXES if not able[axis]})

    def check_space(self, space: ActionSpace) -> None:
        """Raises `UnsupportedModelError` where `space` has levels on an axis that this model does not support."""
        for axis in AXES:
            if len(getattr(space, axis)) > 1:
                self.backend.capability.require(axis)

    def session(self, capacity: int = 0, sparsity: SparsityConfig | None = None) -> Session:
        """An empty session; `capacity` tokens are reserved. sparsity: other rules than the model's."""
        return self.backend.session(sparsity or self.sparsity, capacity)

    def policy(self, name: str = "policy", space: ActionSpace | None = None) -> AnyPolicy:
        """The trained policy (``policy``), or ``dense`` or ``static`` in `space`: always the same
        object, since rows of one policy are decided together."""
        if (name, space) not in self._policies:
            self._policies[name, space] = self._policy(name, self.space if space is None else space)
        return self._policies[name, space]

    def _policy(self, name: str, space: ActionSpace) -> AnyPolicy:
        if name == "policy":
            if self.trained is None:
                raise SolmError("no policy is loaded; give one, or choose dense or static")
            return self.trained.policy()
        if name not in UNTRAINED:
            raise SolmError(f"unknown policy {name!r}; choose policy, {', '.join(UNTRAINED)}")
        self.check_space(space)
        return UNTRAINED[name](space, self.sparsity)

    def decider(self, policy: str | AnyPolicy | None, budget: BudgetLike) -> AnyPolicy:
        """The policy that was requested, by name or itself; else the loaded one; without one, static where there is a
        budget, else dense."""
        requested = policy or ("policy" if self.trained is not None else "dense" if budget is None else "static")
        return self.policy(requested) if isinstance(requested, str) else requested

    def overhead(self, policy: AnyPolicy) -> int:
        """Weights that `policy` reads at every step besides the model's."""
        return int(getattr(policy, "size", 0))

    def budget(self, asked: BudgetLike, context: int = 1024, policy: AnyPolicy | None = None) -> Budget:
        """The budget per axis that a request comes to.

        ``0.7`` is a share of the dense step's milliseconds by `timings`, or without timings a share of its bytes, of
        which the policy's own weights are a part. ``speed=1.5`` and ``ms=4.5`` are other forms of the former, and
        ``loss=0.05`` comes to one by the policy's curve. ``keep=0.6`` is net keep. All are split over the axes by the
        loaded policy, at one price per millisecond (or share) on each axis; without a policy every axis gets the same
        fraction of its range. Bits that save nothing are not lowered, except for a net keep.

        Args:
            asked: in any of these forms, averages per axis, or None: dense.
            context: tokens that the steps see on average.
            policy: what decides; by default the loaded one.

        Raises:
            BudgetError: the request cannot be read, is out of range or cannot be met.
        """
        return self.budgets(policy).budget(asked, context)

    def budgets(self, policy: AnyPolicy | None = None) -> Budgets:
        """The budgets that can be met under `policy`, by default the loaded one."""
        decides = policy or (None if self.trained is None else self.policy())
        space = self.space if self.trained is not None or policy is None else policy.space
        overhead = 0 if decides is None else self.overhead(decides)
        key, timings = (space, overhead, decides is not None and decides.reads_model), self.timings
        if timings is not self._budgets_by:
            self._budgets, self._budgets_by = {}, timings
        if key not in self._budgets:
            split = self.trained or self.calibration
            self._budgets[key] = Budgets(
                space, self.sparsity, self.shapes, split, overhead, timings, key[2], self.backend.exact_passes
            )
        return self._budgets[key]
