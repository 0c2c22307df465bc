"""The ways in: `load` a model by name, `attach` to one that is loaded already, or decode inside its own `generate`."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solm.backends.cpu.backend import CpuBackend
from solm.backends.cpu.engine import VALUE_BITS, check_precision, shapes_of, unsuited
from solm.backends.cpu.files.layout import FLOATS, cache_memory, layout_of, readable_in_part, with_stored_bits
from solm.backends.cpu.files.repack import Progress
from solm.backends.cpu.files.sources import LoadedModel, WeightSource, source_of
from solm.backends.hub import local_model
from solm.backends.machine import accelerator_available, check_threads, free_memory, keep_freed_memory
from solm.backends.names import BUILTIN, dtype_name, folder_of, gguf_of, not_loadable
from solm.backends.tokenizer import model_tokenizer
from solm.core.actions import ActionSpace
from solm.core.budget import BudgetLike, Budgets
from solm.core.clock import StepClock
from solm.core.cost import ModelShapes
from solm.core.errors import ContextLengthError, DamagedFileError, SolmError, UnsupportedModelError, argument, counted
from solm.core.files import read_model, read_object
from solm.core.sparsity import SparsityConfig
from solm.policies.artifact import TrainedPolicy, shipped
from solm.policies.identity import BaseIdentity
from solm.runtime.controlled import sparsity_of, untrained_space
from solm.runtime.draft import check_vocabulary
from solm.runtime.language_model import LanguageModel, ending

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

BACKENDS = ("torch", "cpu", "auto")
AUTO = "auto"
"""In place of a policy's name: the one that ships for the model."""


def load(
    model: str | Path,
    policy: str | Path | TrainedPolicy | None = None,
    *,
    tokenizer: Any = None,
    sparsity: SparsityConfig | str | None = None,
    dtype: "str | torch.dtype" = "auto",
    device: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    backend: str = "auto",
    precision: str | None = None,
    kv_cache_dtype: str | None = None,
    threads: int | None = None,
    timings: str | Path | None = None,
    draft: str | Path | None = None,
    progress: Progress | None = None,
) -> LanguageModel:
    """Load a base model, with a policy if given.

    Args:
        model: hub id, folder, ``.gguf`` file, ``hf:OWNER/NAME:TYPE`` for a GGUF file of the hub, or
            ``builtin:smollm2-135m``.
        policy: folder, hub id or ``builtin:...`` of a trained policy, the policy itself, or ``auto``: the one that
            ships for the model.
        tokenizer: of transformers, in place of the one that comes with the model.
        sparsity: how actions are carried out, a config or the name of a preset; by default the policy's own, else
            preset ``cpu`` on the cpu backend and ``default`` on torch.
        dtype: of the torch backend: ``auto``, ``float32``, ``bfloat16`` or ``float16``, or a dtype of torch.
        device: such as ``cuda:1``; by default the accelerator, else the CPU.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run code that comes with a model.
        backend: ``cpu`` (steps on the compiled engine), ``torch`` (any device, exact simulation, saves no time), or
            ``auto``: cpu where it can run the model, else torch. The logger ``solm`` says which one and why.
        precision: of the weights of the cpu backend; by default ``auto``: the types of a GGUF file as they are, int8
            for floats. Actions that choose weight bits have ``nested``, unless the MLP weights of a GGUF file all have
            6 or 8 bits. ``int4`` rounds what has more than 4 bits, and loses more than a 4-bit GGUF file does.
        kv_cache_dtype: of the keys and values of the cpu backend: ``auto`` (that of the weights, at least 16 bits),
            ``int8`` or ``int8-int4`` (values in 4 bits); by default auto, and int8 for the built-in model, where no
            loss could be measured.
        threads: threads of the cpu backend's steps; by default one per usable core.
        timings: a file of ``solm bench``, or the ``clock`` of a reply in JSON, so that budgets in time stay as they
            are; by default this machine is timed at the first one.
        draft: a smaller model of the same vocabulary, by any name of `model`, that guesses tokens of dense replies
            where that pays. The replies stay the same. On the cpu backend its weights have 4 bits.
        progress: called with the parts done and all parts, while the cpu backend repacks weights that are not cached.

    Raises:
        SolmError: subclasses for an unknown model, an unsupported family, a damaged or mismatched policy. Whatever can
            be checked before weights are read is checked then; `argument` of the error names what is wrong.
    """
    prepared = Prepared(
        str(model), policy, tokenizer=tokenizer, sparsity=sparsity, dtype=dtype, device=device,
        revision=revision, trust_remote_code=trust_remote_code, backend=backend, precision=precision,
        kv_cache_dtype=kv_cache_dtype, threads=threads, timings=timings, draft=draft,
    )  # fmt: skip
    return prepared.load(progress)


def attach(
    model: "PreTrainedModel",
    policy: str | Path | TrainedPolicy | None = None,
    tokenizer: Any = None,
    *,
    sparsity: SparsityConfig | str | None = None,
    backend: str = "torch",
    precision: str | None = None,
    kv_cache_dtype: str | None = None,
    threads: int | None = None,
) -> LanguageModel:
    """Put a loaded transformers model under control. `detach`, or the end of a ``with`` block, restores it bit for bit.

    Arguments and errors as for `load`; the default of `backend` is ``torch``.
    """
    return Prepared(
        "", policy, tokenizer=tokenizer, sparsity=sparsity, device="cpu", backend=backend, precision=precision,
        kv_cache_dtype=kv_cache_dtype, threads=threads, loaded=model,
    ).load()  # fmt: skip


def custom_generate(
    policy: str | Path | TrainedPolicy | None = None,
    budget: BudgetLike = None,
    *,
    sparsity: SparsityConfig | str | None = None,
    streamer: Any = None,
) -> "Callable[..., torch.Tensor]":
    """A decoding loop for ``model.generate`` of a plain transformers model that keeps a budget.

    Pass it as ``model.generate(**inputs, custom_generate=solm.custom_generate(policy, budget=0.7))``. Sampling options,
    logits processors, stopping criteria, lengths and the form of the result are transformers' own. The model is under
    control, on the torch backend, only while it generates. To keep it under control, or for the speed of the cpu
    backend, `attach` it and pass `LanguageModel.custom_generate`.

    Args:
        policy: folder, hub id or ``builtin:...`` of a trained policy, or the policy itself; without one all layers are
            treated alike.
        budget: in any form of `LanguageModel.budget`; None: dense.
        streamer: as for `model.generate`, for one prompt; transformers does not pass its own to a custom loop.

    Raises:
        SolmError: when the loop is called, for a policy that does not fit the model, a budget that cannot be met, or
            beam search.
    """

    @ending(streamer)
    def loop(model: Any, input_ids: "torch.Tensor", **given: Any) -> "torch.Tensor":
        from solm.runtime import custom

        with attach(model, policy, sparsity=sparsity) as lm:
            return custom.custom_generate(lm, budget, None, streamer)(model, input_ids, **given)

    return loop


@dataclass(frozen=True)
class ModelFacts:
    """context: tokens that the model can read; None: not known."""

    family: str
    context: int | None
    shapes: ModelShapes

    def identity(self, like: BaseIdentity) -> BaseIdentity:
        """`like` with the architecture of this model, whose weights are not known yet."""
        sizes = {"hidden": self.shapes.hidden, "layers": self.shapes.layers, "vocabulary": self.shapes.vocabulary}
        return like.model_copy(update={"family": self.family, **sizes})


def shipped_policy(facts: ModelFacts) -> str:
    """The name of the policy that ships for such a model; of several one with a measured curve, or made for the cpu
    backend. Raises `SolmError` where none does."""
    found = {}
    for name in shipped():
        trained = TrainedPolicy.from_pretrained(name)
        if trained.config.base.difference_of_shape(facts.identity(trained.config.base)) is None:
            found[name] = trained
    if not found:
        raise SolmError(f"no policy ships for this {facts.family} model; solm fit makes one for any")
    return max(found, key=lambda name: found[name].curve is not None)


@dataclass
class Prepared:
    """A model whose files, but for the weights, are read and whose options fit one another; `load` reads the weights.

    Fields up to `draft` are the arguments of `solm.load`. loaded: transformers' model, where there is one already, in
    place of a name. asked: the model as it was named; `model` is the path of a file of the hub. trained: the policy.
    source: the weights as the cpu backend reads them; None where torch will run the model, and reason then says why,
    where that is a choice. drafting: the draft model. Raises `SolmError`, whose `argument` names the field that is
    wrong.
    """

    model: str
    policy: str | Path | TrainedPolicy | None = None
    tokenizer: Any = None
    sparsity: SparsityConfig | str | None = None
    dtype: "str | torch.dtype" = "auto"
    device: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    backend: str = "auto"
    precision: str | None = None
    kv_cache_dtype: str | None = None
    threads: int | None = None
    timings: str | Path | None = None
    draft: str | Path | None = None
    loaded: "PreTrainedModel | None" = None
    asked: str = field(init=False)
    trained: TrainedPolicy | None = field(init=False, default=None)
    times: StepClock | None = field(init=False, default=None)
    source: WeightSource | None = field(init=False, default=None)
    reason: str | None = field(init=False, default=None)
    drafting: "Prepared | None" = field(init=False, default=None)
    facts: ModelFacts = field(init=False)

    def __post_init__(self) -> None:
        self._check_options()
        self.asked = self.model
        with argument("model"):
            self.model = local_model(self.model, self.revision)
        if self.timings is not None:
            with argument("timings"):
                self.times = read_model(Path(self.timings), StepClock)
                self.times.check(self.model, self.backend)
        with argument("model"):
            self.facts = self._read_files()
        if self.policy is not None:
            with argument("policy"):
                trained = self.policy
                if not isinstance(trained, TrainedPolicy):
                    trained = TrainedPolicy.from_pretrained(shipped_policy(self.facts) if trained == AUTO else trained)
                trained.check(self.facts.identity(trained.config.base), self.facts.shapes)
                self.trained = trained
        if self.source is not None:
            reason = unsuited(self.source.spec, self.how)
            if reason is not None:
                self._without_engine(UnsupportedModelError(f"the cpu backend cannot run this model: {reason}"))
        self._check_numbers()
        if self.loaded is None:
            with argument("model"):
                self.tokenizer = self.tokenizer or model_tokenizer(self.model, self.trust_remote_code, self.revision)
        if self.draft is not None:
            self.drafting = self._prepare_draft(str(self.draft))

    def _prepare_draft(self, name: str) -> "Prepared":
        """The draft model. Raises `SolmError` where it cannot be one, or does not fit into memory beside the model."""
        try:
            found = Prepared(
                name, device=self.device, trust_remote_code=self.trust_remote_code, backend=self.backend,
                threads=self.threads,
            )  # fmt: skip
            if found.source is not None:
                found.precision = "int4"  # its guesses are nearly as good, and take less time
            check_vocabulary(found.tokenizer, self.tokenizer, name)
            weights, left = found.weight_bytes(), free_memory() - self.weight_bytes()
            if weights > left:
                raise SolmError(
                    f"{name} takes {weights / 1e9:.1f} GB, and {max(left, 0) / 1e9:.1f} GB of memory are left beside "
                    "the model"
                )
        except SolmError as error:
            error.argument = "draft"
            raise
        return found

    def weight_bytes(self) -> float:
        """Of the weights in memory: on the torch backend at least, on the cpu backend of all experts."""
        if self.source is not None:
            return layout_of(self.source, self._numbers[0]).nbytes
        return self.budgets().shapes.step_bits / 8

    def _check_options(self) -> None:
        """Refuse options that no model could be loaded with."""
        with argument("backend"):
            if self.backend not in BACKENDS:
                raise SolmError(f"unknown backend {self.backend!r}; choose one of {', '.join(BACKENDS)}")
        with argument("precision"):
            check_precision(self.precision or "auto")
        with argument("kv_cache_dtype"):
            check_precision(self.precision or "auto", self.kv_cache_dtype or "auto")
        with argument("dtype"):
            dtype_name(self.dtype)
        with argument("sparsity"):
            sparsity_of(None, self.sparsity)
        if self.threads is not None:
            with argument("threads"):
                check_threads(self.threads)  # a mistake, and no reason for `auto` to go on without the engine

    def _read_files(self) -> ModelFacts:
        """What the files say of the model; and the weights as the cpu backend reads them, or why it does not."""
        loaded = self.loaded
        if self.backend != "torch":
            self.reason = self._elsewhere()
            if self.reason is not None and self.backend == "cpu":
                raise SolmError(f"the cpu backend cannot run this model: {self.reason}")
        if self.backend != "torch" and self.reason is None:
            try:
                self.source = source_of(self.model, self.revision) if loaded is None else LoadedModel(loaded)
            except SolmError as error:
                self._without_engine(error)
            else:
                spec = self.source.spec
                return ModelFacts(spec.family, spec.context, shapes_of(spec))
        from solm.backends.torch.families import model_shapes
        from solm.backends.torch.load import base_config

        try:
            config = base_config(self.model, self.trust_remote_code, self.revision) if loaded is None else loaded.config
            text: Any = config.get_text_config(decoder=True)
            context = getattr(text, "max_position_embeddings", None)
            return ModelFacts(str(text.model_type), context, model_shapes(text, gated=True))
        except (TypeError, AttributeError, ArithmeticError) as error:  # sizes that make no sense
            raise not_loadable(self.model, error) from error

    def _elsewhere(self) -> str | None:
        """Why the model does not run on the CPU of this process; None if it does."""
        if self.device not in (None, "cpu"):
            from solm.backends.torch.load import check_device

            if check_device(str(self.device)).type != "cpu":
                return "it runs on the CPU only"
        if self.device is None and accelerator_available():
            return "there is an accelerator"
        return None

    def _without_engine(self, error: SolmError) -> None:
        """Go on with torch, whose reason is `error`; raises it where only the cpu backend will do."""
        if self.backend == "cpu" or isinstance(error, DamagedFileError):
            raise error
        self.source, self.reason = None, str(error)

    def _check_numbers(self) -> None:
        """Raises `SolmError` for what only the cpu backend has, where it does not run."""
        for name in ("precision", "kv_cache_dtype"):
            value = getattr(self, name)
            if self.source is None and value is not None:
                with argument(name):
                    raise SolmError(f"{name} {value} needs the cpu backend: {self.reason or 'this is torch'}")

    @property
    def how(self) -> SparsityConfig:
        """How actions are carried out: as asked, else as the policy was trained, else by the backend's preset."""
        preset = "cpu" if self.source is not None and self.trained is None else None
        return sparsity_of(self.trained, self.sparsity or preset)

    def check_room(self, tokens: int) -> None:
        """Raises `ContextLengthError` for more tokens than the model has positions for."""
        context = self.facts.context
        if context is not None and tokens > context:
            raise ContextLengthError(f"{tokens} tokens exceed this model's context of {context}")

    def budgets(self, space: ActionSpace | None = None) -> Budgets:
        """The budgets that can be met: under the policy, without one with actions of `space`, by default of all that
        the backend can carry out."""
        shapes, timings, overhead = self.facts.shapes, self.times, 0
        if self.source is not None:
            precision, cache = self._numbers
            layout = layout_of(self.source, precision)
            shapes = with_stored_bits(shapes, layout, precision == "float32", VALUE_BITS[cache])
        if self.trained is not None:
            space, overhead = self.trained.config.space, int(getattr(self.trained.policy(), "size", 0))
            curve = self.trained.curve
            timings = timings or (None if curve is None else curve.clock)
        space = space or untrained_space(self.how, self.source is not None)
        verified = self.source is not None and self._numbers[0] not in FLOATS
        return Budgets(space, self.how, shapes, self.trained, overhead, timings, verified=verified)

    def cache_bytes(self, tokens: int) -> int:
        """Bytes of the keys and values of one row of so many tokens."""
        if self.source is not None:
            precision, cache = self._numbers
            return cache_memory(self.facts.shapes, tokens, precision == "float32", VALUE_BITS[cache])
        import torch

        from solm.backends.torch.load import resolve_dtype

        return cache_memory(self.facts.shapes, tokens, resolve_dtype(self.dtype) == torch.float32, 0)

    @property
    def _numbers(self) -> tuple[str, str]:
        """What the cpu backend has weights, and keys and values, in.

        Weights are as the files have them, unless actions choose weight bits and those of the files cannot be read in
        part. Keys and values have int8 where it was measured to lose nothing, which is so far one model.
        """
        assert self.source is not None
        bits = self.how.bits_site == "weights"
        precision = self.precision or ("nested" if bits and not readable_in_part(self.source) else "auto")
        lossless = self.model == BUILTIN and precision not in FLOATS
        return precision, self.kv_cache_dtype or ("int8" if lossless else "auto")

    def load(self, progress: Progress | None = None) -> LanguageModel:
        """Read the weights, and those of the draft model, as `_load` does."""
        lm = self._load(progress)
        if self.drafting is not None:
            try:
                lm.draft = self.drafting.load(progress)
            except SolmError as error:
                lm.detach()
                error.argument = "draft"
                raise
        return lm

    def _load(self, progress: Progress | None) -> LanguageModel:
        """Read the weights. progress: called with the parts done and all parts, while the cpu backend repacks weights
        that are not cached. Raises `SolmError` where that fails; with backend ``auto`` torch is tried then."""
        if self.source is not None:
            keep_freed_memory()
            precision, cache = self._numbers
            try:
                engine = CpuBackend(self.source, self.how, precision, self.threads, cache, progress)
            except SolmError as error:
                self._without_engine(error)
            else:
                generation = self._generation_options(self.source)
                return announced(
                    LanguageModel(
                        engine, self.tokenizer, self.trained, self.how, self.model, self.times, self.loaded, generation
                    )
                )  # fmt: skip
        self._check_numbers()
        from solm.backends.torch.backend import TorchBackend
        from solm.backends.torch.load import load_base

        base, tokenizer = self.loaded, self.tokenizer
        if base is None:
            base, tokenizer = load_base(
                self.model, self.dtype, self.device, self.trust_remote_code, self.revision, tokenizer,
            )  # fmt: skip
        backend = TorchBackend(base)
        try:
            lm = LanguageModel(backend, tokenizer, self.trained, self.sparsity, self.model, self.times)
            return announced(lm, self.reason)
        except SolmError:
            backend.detach()
            raise

    def _generation_options(self, source: WeightSource) -> dict[str, Any]:
        """A folder's own generation options, or the tokens that end a text."""
        if self.loaded is None and gguf_of(self.model) is None:
            path = folder_of(self.model, self.revision) / "generation_config.json"
            if path.is_file():
                options = read_object(path).items()
                return {key: value for key, value in options if value is not None and not key.startswith("_")}
        return {"bos_token_id": source.spec.bos, "eos_token_id": list(source.spec.eos) or None}


def announced(lm: LanguageModel, reason: str | None = None) -> LanguageModel:
    """`lm`, after saying what it runs on: backend, precision, KV cache and threads. reason: why it is not the cpu
    backend."""
    backend, parts = lm.backend, [lm.backend.name]
    if isinstance(backend, CpuBackend) and not backend.sizes.value_bits:
        parts.append(f"{'float32' if backend.precision == 'float32' else 'bfloat16'} KV cache")
    parts.append(counted(lm.threads, "thread"))
    # On another device torch is what one expects; on the CPU it saves no time.
    slow = reason is not None and backend.device.type == "cpu"
    told = "" if reason is None else f"; not the cpu backend: {reason}"
    logging.getLogger("solm").log(logging.WARNING if slow else logging.INFO, "%s%s", ", ".join(parts), told)
    return lm
