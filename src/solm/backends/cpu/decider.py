"""A value policy in the engine's terms, and what it is told of the rows that it decides for."""

import ctypes
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch

from solm.core.actions import FULL_BITS
from solm.policies.priced import FALLING_PRICES
from solm.policies.value_policy import ValuePolicy

ROW = np.dtype(
    [
        ("decider", np.uint64),
        *((name, np.float64, 3) for name in ("target", "spent", "early")),
        ("booked", np.int64),
        ("left", np.int64),
    ]
)
"""What a row may spend and has spent, one record a row: target shares, shares booked, those that the layers before the
policy's spent, steps booked, steps left of its horizon. The engine books what it decides; decider 0: it does not."""

_double, _float = ctypes.POINTER(ctypes.c_double), ctypes.c_void_p


class _Decider(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("layer", "width", "clamp", "points")),
        ("sizes", ctypes.c_int32 * 3),
        *((name, _float) for name in ("read", "read_bias", "head", "head_bias", "scale", "trust")),
        *((name, _double * 3) for name in ("levels", "shares", "own", "rest", "spent")),
        ("prices", _double),
    ]


class Decider:
    """A one-layer network over the residual stream and per axis what its sensitivities are multiplied with.

    read: weight [width, H + 3] and bias of the hidden layer; head: [3, width] and bias; scale, trust: [3].
    levels: per axis the action space's levels (κ, ρ, bits). own, rest: what each gains, in nats, times the sensitivity
    and whatever it is. curves: per axis average shares, ascending, of tokens that pay `prices`, [points] each. layer:
    the one before which it decides.
    """

    def __init__(
        self,
        layer: int,
        read: tuple[torch.Tensor, torch.Tensor],
        head: tuple[torch.Tensor, torch.Tensor],
        scale: torch.Tensor,
        trust: torch.Tensor,
        levels: Sequence[np.ndarray],
        own: Sequence[np.ndarray],
        rest: Sequence[np.ndarray],
        curves: Sequence[np.ndarray],
        prices: np.ndarray,
        clamp: bool,
    ):
        floats = (read[0].T, read[1], *head, scale, trust)
        self._floats = [values.detach().float().cpu().contiguous() for values in floats]
        attention, mlp, bits = levels
        tables = (levels, (attention, mlp, bits / FULL_BITS), own, rest, curves)
        self._doubles = [[np.ascontiguousarray(part, dtype=np.float64) for part in table] for table in tables]
        self._prices = np.ascontiguousarray(prices, dtype=np.float64)
        pointers = [(_double * 3)(*(values.ctypes.data_as(_double) for values in parts)) for parts in self._doubles]
        self._struct = _Decider(
            layer, len(read[1]), clamp, len(prices), (ctypes.c_int32 * 3)(*(len(part) for part in levels)),
            *(values.data_ptr() for values in self._floats), *pointers, self._prices.ctypes.data_as(_double),
        )  # fmt: skip

    @property
    def address(self) -> int:
        return ctypes.addressof(self._struct)


_DECIDERS: WeakKeyDictionary[ValuePolicy, Decider] = WeakKeyDictionary()


def decider_of(policy: ValuePolicy) -> Decider:
    """The decisions of `policy` in the engine's terms, made once per policy object."""
    if policy not in _DECIDERS:
        network, space = policy.network, policy.space
        _DECIDERS[policy] = Decider(
            layer=policy.layer,
            read=(network.read.weight, network.read.bias),
            head=(network.head.weight, network.head.bias),
            scale=network.scale,
            trust=network.trust,
            levels=[np.array(levels, dtype=np.float64) for levels in (space.attention, space.mlp, space.bits)],
            own=[-cost.numpy() for cost in policy.own_cost],
            rest=[-cost.numpy() for cost in policy.fixed_cost],
            curves=[curve.rising for curve in policy.curves],
            prices=FALLING_PRICES,
            clamp=policy.clamp,
        )
    return _DECIDERS[policy]
