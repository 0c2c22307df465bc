"""Models over several devices: layers that lie elsewhere."""

import pytest
import torch
from accelerate.hooks import attach_execution_device_hook
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

import solm
from helpers.models import keep_of, tiny_model
from helpers.sessions import scored_under
from solm.core.actions import ActionSpace
from solm.core.sparsity import SparsityConfig
from solm.paper.config import SPARSITY as PAPER
from solm.policies.value_network import ValueNetwork
from solm.policies.value_policy import ValueConfig, ValuePolicy

ELSEWHERE = torch.device("meta")


class Away(torch.Tensor):
    """A tensor that says it lies on another device, and computes on the CPU. Meeting one that lies here is an error,
    as between a GPU and the CPU."""

    @staticmethod
    def __new__(cls, here):
        return torch.Tensor._make_wrapper_subclass(
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device=ELSEWHERE
        )

    def __init__(self, here):
        self.here = here

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return computed(function, args, kwargs or {})


class Devices(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return computed(function, args, kwargs or {})


def computed(function, args, kwargs):
    leaves = tree_flatten((args, kwargs))[0]
    away = {id(leaf.here): leaf for leaf in leaves if isinstance(leaf, Away)}
    mixed = away and any(type(leaf) is torch.Tensor and leaf.dim() for leaf in leaves)
    asked = kwargs.get("device")
    moves = any(part in str(function) for part in ("_to_copy", "copy_", "aten.index.Tensor"))
    assert moves or not mixed, f"{function} mixes devices"
    args, kwargs = tree_map(lambda leaf: leaf.here if isinstance(leaf, Away) else leaf, (args, kwargs))
    if asked is not None:
        kwargs["device"] = torch.device("cpu")
    found = function(*args, **kwargs)
    if not (asked == ELSEWHERE or (away and asked is None)):
        return found
    if function is torch.ops.aten.copy_.default and id(args[0]) not in away:
        return found
    return tree_map(lambda leaf: away.get(id(leaf), Away(leaf)) if isinstance(leaf, torch.Tensor) else leaf, found)


def put_away(module):
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(Away(parameter.data), requires_grad=False))
    attach_execution_device_hook(module, ELSEWHERE)


@pytest.mark.parametrize("sparsity", [SparsityConfig(), PAPER], ids=["default", "paper"])
def test_layers_on_another_device_obey_every_action_like_those_in_one_place(sparsity):
    ids = torch.randint(3, 259, (2, 140), generator=torch.Generator().manual_seed(0))
    space = ActionSpace.preset("joint-8")

    def found(model):
        with solm.attach(model, sparsity=sparsity) as lm, Devices():
            session = lm.session()
            session.prefill(ids[:, :100])
            several = [
                session.fork(1).score(ids[:, 100:], keep_of(action, 2, 39)).log_probabilities
                for action in ((1.0, 1.0, 16), (0.4, 0.6, 6))
            ]
            ragged = lm.session()
            ragged.prefill(ids[:, :100], torch.tensor([100, 85]))
            several.append(ragged.step(ids[:, 0], keep_of((0.4, 0.6, 6), 2, 1)[:, 0]).logits[:, 0])
            target = torch.full((2, 3), 0.7, dtype=torch.float64)
            several.append(
                scored_under(session.fork(1), lm.policy("static", space), ids[:, 100:], target).log_probabilities
            )
            torch.manual_seed(1)
            for layer in (0, 1):  # decided before a layer in either place
                network = ValueNetwork(ValueConfig(base_hidden=64, layer=layer, grid=space, width=16)).eval()
                with torch.no_grad():
                    network.head.weight.copy_(torch.linspace(-1, 1, network.head.weight.numel()).view(3, -1))
                policy = ValuePolicy(network, space)
                several.append(scored_under(session.fork(1), policy, ids[:, 100:], target).log_probabilities)
            said = [token.id for token in lm.generate(ids[:1, :90], max_new_tokens=8).tokens]
            return [getattr(part, "here", part) for part in several], said

    whole, parts = tiny_model("llama"), tiny_model("llama")
    put_away(parts.model.layers[1])
    attach_execution_device_hook(parts.model.norm, torch.device("cpu"))
    (scored, said), (expected, told) = found(parts), found(whole)
    for mine, theirs in zip(scored, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    assert said == told
