"""Putting a model under control, reversibly: hooks on its MLPs and head, and our attention function by name."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from solm.backends.torch.active import ActivePass, active_pass
from solm.backends.torch.channel_linear import ChannelLinears
from solm.backends.torch.families import Capability, MLPSites, decoder_layers, mlp_sites, probe
from solm.backends.torch.interface import PREFIX, register
from solm.backends.torch.nested_linear import NestedLinears
from solm.backends.torch.plan import HIDDEN, INPUT
from solm.backends.torch.quantize import fake_quantize
from solm.backends.torch.select import keep_channels, keep_where
from solm.core.cost import ModelShapes
from solm.core.errors import UnsupportedModelError


class ModelControl:
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
        self._handles: list[Any] = []
        self._hidden: torch.Tensor | None = None
        self._linears, self._nested = ChannelLinears(), NestedLinears()
        model.eval()
        model.set_attn_implementation(register(implementation))
        for index, layer in enumerate(decoder_layers(model)):
            self._handles.append(layer.register_forward_pre_hook(_before_layer(index), with_kwargs=True))
            if self.capability.axes["mlp"]:
                self._hook_mlp(mlp_sites(layer))
        self._handles.append(model.get_output_embeddings().register_forward_pre_hook(self._read_hidden))

    def detach(self) -> None:
        """Give the model back as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._linears, self._nested = ChannelLinears(), NestedLinears()
        self.model.set_attn_implementation(self._implementation)
        self.model.train(self._training)

    def last_hidden(self) -> torch.Tensor:
        """What the head read in the last pass: [N, Q, H]."""
        assert self._hidden is not None, "no forward pass has run"
        hidden, self._hidden = self._hidden, None
        return hidden

    def _read_hidden(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self._hidden = args[0]

    def _hook_mlp(self, sites: MLPSites) -> None:
        before, after = nn.Module.register_forward_pre_hook, nn.Module.register_forward_hook
        self._handles += [
            before(sites.mlp, _before_matmul(INPUT)),
            before(sites.down, _before_matmul(HIDDEN)),
            after(sites.mlp, _after_mlp),
            *self._linears.replace(sites),
            *self._nested.hook(sites),
        ]


def _select(x: torch.Tensor, current: ActivePass, site: int) -> torch.Tensor:
    current.follow(x.device)
    plan = current.plan
    power = plan.sparsity.hidden_power if site == HIDDEN else 1
    if plan.sparsity.thresholds is not None:
        limit = plan.sparsity.thresholds.at(current.layer, site, plan.keep[..., 1] ** power)
        above = x.abs().float() >= limit[..., None]
        current.count(above.double().mean(-1))
        return keep_where(x, above)
    return keep_channels(x, plan.channels(x.shape[-1], power))


def _quantise(x: torch.Tensor, current: ActivePass) -> torch.Tensor:
    current.follow(x.device)
    return fake_quantize(x, current.plan.bits, current.plan.sparsity.bits_group)


def _before_layer(index: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        current = active_pass()
        if current is not None:
            current.enter(index, args[0] if args else kwargs["hidden_states"])

    return hook


def _before_matmul(site: int) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        current = active_pass()
        if current is None:
            return None
        x, plan = args[0], current.plan
        if plan.drops(site):
            x = _select(x, current, site)
        if plan.low_bits and plan.sparsity.bits_site == "input":
            x = _quantise(x, current)
        return None if x is args[0] else (x, *args[1:])

    return hook


def _after_mlp(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
    current = active_pass()
    if current is None or not current.plan.low_bits or current.plan.sparsity.bits_site != "output":
        return None
    return _quantise(output, current)
