"""Putting a model under control, reversibly: hooks on its MLPs and head, and our attention function by name."""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from solm.backends.session import Capability
from solm.backends.torch.attention import PREFIX, register
from solm.backends.torch.cache import PagedCache
from solm.backends.torch.experts import control
from solm.backends.torch.families import attention_sites, decoder_layers, experts_of, mlp_sites, probe
from solm.backends.torch.linears import MLPLinears
from solm.backends.torch.plan import INPUT, QKV, ActivePass, active_pass
from solm.backends.torch.select import fake_quantize, keep_channels, keep_where
from solm.core.arrays import Array, as_tensor
from solm.core.cost import ModelShapes
from solm.core.errors import UnsupportedModelError
from solm.core.sparsity import MLP_SITES


class HookedModel:
    """A model whose forward passes obey the active plan. Weights are never touched; `detach` undoes everything.

    Raises `UnsupportedModelError` for a model that is controlled already, or whose attention cannot be.
    """

    def __init__(self, model: PreTrainedModel):
        implementation = model.config._attn_implementation
        if implementation.startswith(PREFIX):
            raise UnsupportedModelError("this model is attached already; detach it first")
        self.model = model
        self.capability: Capability = probe(model)
        self.capability.require("attention")
        assert self.capability.shapes is not None
        self.shapes: ModelShapes = self.capability.shapes
        self._implementation = implementation
        self._training = model.training
        self._undo = ExitStack()
        self.device: torch.device = next(model.parameters()).device
        """Where the embeddings are, and what sessions hand out but logits; layers may lie elsewhere."""
        last = next(decoder_layers(model)[-1].parameters()).device
        self._end = self.device if last.type == "meta" else last  # weights that wait on the disk are on `meta`
        self._seen = threading.local()  # passes of several threads do not see each other's hidden states
        linears = MLPLinears()
        model.eval()
        model.set_attn_implementation(register(implementation))
        for index, layer in enumerate(decoder_layers(model)):
            self._hook(layer.register_forward_pre_hook(_before_layer(index), with_kwargs=True))
            experts = experts_of(layer) if self.capability.axes["mlp"] else None
            if experts is not None:
                self._undo.callback(control(experts))
            elif self.capability.axes["mlp"]:
                mlp, down = mlp_sites(layer)
                self._hook_sites(mlp, down, first=INPUT)
                self._hook(mlp.register_forward_hook(_after_mlp))
                for undo in linears.control(mlp, down):
                    self._undo.callback(undo)
            if "projections" not in self.capability.reasons:
                self._hook_sites(*attention_sites(layer), first=QKV)
        self._hook(model.get_output_embeddings().register_forward_pre_hook(self._read_hidden))

    def detach(self) -> None:
        """Give the model back exactly as it was."""
        self._undo.close()
        self.model.set_attn_implementation(self._implementation)
        self.model.train(self._training)

    @property
    def context(self) -> int | None:
        """Tokens that the model's context holds, where its configuration says so."""
        return getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)

    def embed(self, tokens: Array) -> torch.Tensor:
        """Input embeddings of tokens [...], as the first layer reads them: [..., H]."""
        embeddings: torch.Tensor = self.model.get_input_embeddings()(as_tensor(tokens).to(self.device))
        # granite's model multiplies them, not the module that has them.
        return embeddings * getattr(self.model.config.get_text_config(decoder=True), "embedding_multiplier", 1.0)

    def forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, cache: PagedCache, keep_logits: int | torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One pass over tokens [N, Q] at positions [N, Q]: logits [N, L, V] of the positions keep_logits [N, L] (0: of
        all, 1: of the last one), and what the head read for them [N, L, H], on `device`."""
        if isinstance(keep_logits, torch.Tensor):
            keep_logits = keep_logits.to(self._end)
        output = self.model(
            input_ids=tokens.to(self.device),
            position_ids=positions.to(self.device),
            cache=cache,
            use_cache=True,
            logits_to_keep=keep_logits,
        )
        hidden: torch.Tensor = self._seen.hidden
        del self._seen.hidden
        return output.logits, hidden.to(self.device)

    def _read_hidden(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self._seen.hidden = args[0]

    def _hook(self, *handles: RemovableHandle) -> None:
        """Remove hooks when the model is given back."""
        for handle in handles:
            self._undo.callback(handle.remove)

    def _hook_sites(self, *modules: nn.Module, first: int) -> None:
        """Let modules read what plans keep at consecutive sites, from the number `first` on."""
        for site, module in enumerate(modules, first):
            self._hook(module.register_forward_pre_hook(_before(site), with_kwargs=True))


def _select(x: torch.Tensor, current: ActivePass, site: int) -> torch.Tensor:
    current.follow(x.device)
    plan = current.plan
    if plan.limits is not None:
        above = x.abs().float() >= plan.limits[site][..., None]
        current.count(site, above.double().mean(-1))
        return keep_where(x, above)
    return keep_channels(x, plan.channels[site][..., None])


def _quantise(x: torch.Tensor, current: ActivePass) -> torch.Tensor:
    current.follow(x.device)
    return fake_quantize(x, current.plan.bits, current.plan.sparsity.bits_group)


def _before_layer(index: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        current = active_pass()
        if current is not None:
            current.enter(index, args[0] if args else kwargs["hidden_states"])

    return hook


def _before(site: int) -> Callable[..., Any]:
    """Drops channels of what the module of a site reads, and rounds it where bits are those of the MLP's inputs."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        current = active_pass()
        if current is None:
            return None
        plan, x = current.plan, args[0] if args else kwargs["hidden_states"]
        if plan.drops(site):
            x = _select(x, current, site)
        if site < MLP_SITES and plan.low_bits and plan.sparsity.bits_site == "input":
            x = _quantise(x, current)
        return ((x, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": x})

    return hook


def _after_mlp(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
    current = active_pass()
    if current is None or not current.plan.low_bits or current.plan.sparsity.bits_site != "output":
        return None
    return _quantise(output, current)
