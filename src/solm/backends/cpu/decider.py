"""A value policy in the engine's terms."""

import ctypes
from collections.abc import Sequence
from threading import Lock
from weakref import WeakKeyDictionary

import numpy as np

from solm.backends.cpu import structs
from solm.core.actions import FULL_BITS
from solm.core.arrays import Array, as_numpy
from solm.policies.priced import FALLING_PRICES
from solm.policies.value_policy import ValuePolicy

_double = ctypes.POINTER(ctypes.c_double)


class Decider:
    """A network with one hidden layer over the residual stream, and per axis the costs of levels.

    layer: the one before which it decides. read: weight [width, H + 3] and bias of the hidden layer; head: weight
    [3, width] and bias; scale, trust: [3]. levels: per axis the action space's levels (κ, ρ, bits). own_cost,
    fixed_cost: per axis [levels] float64 in nats, at least 0; a level costs fixed_cost + sensitivity · own_cost.
    curves: per axis the average shares, ascending, of tokens that pay `prices`, [points] each. clamp: exclude actions
    after which the budget could no longer be met.

    It must outlive the rows' states that point to it.
    """

    def __init__(
        self,
        *,
        layer: int,
        read: tuple[Array, Array],
        head: tuple[Array, Array],
        scale: Array,
        trust: Array,
        levels: Sequence[np.ndarray],
        own_cost: Sequence[np.ndarray],
        fixed_cost: Sequence[np.ndarray],
        curves: Sequence[np.ndarray],
        prices: np.ndarray,
        clamp: bool,
    ):
        floats = {"read": as_numpy(read[0]).T, "read_bias": read[1], "head": head[0], "head_bias": head[1]}
        floats |= {"scale": scale, "trust": trust}
        self._floats = {name: np.array(as_numpy(values), np.float32, order="C") for name, values in floats.items()}
        attention, mlp, bits = levels
        tables = {
            "levels": levels, "shares": (attention, mlp, bits / FULL_BITS), "own_cost": own_cost,
            "fixed_cost": fixed_cost, "curve": curves,
        }  # fmt: skip
        self._doubles = {
            name: [np.ascontiguousarray(part, dtype=np.float64) for part in table] for name, table in tables.items()
        }
        self._prices = np.ascontiguousarray(prices, dtype=np.float64)
        self._struct = structs.Decider(
            layer=layer,
            width=len(read[1]),
            hidden=read[0].shape[1] - 3,
            clamp=clamp,
            points=len(prices),
            sizes=(ctypes.c_int32 * 3)(*(len(part) for part in levels)),
            prices=self._prices.ctypes.data_as(_double),
            **{name: values.ctypes.data for name, values in self._floats.items()},
            **{
                name: (_double * 3)(*(values.ctypes.data_as(_double) for values in table))
                for name, table in self._doubles.items()
            },
        )

    @property
    def address(self) -> int:
        """What goes into the field `decider` of `solm.backends.budgets.ROW_STATE`."""
        return ctypes.addressof(self._struct)


_DECIDERS: WeakKeyDictionary[ValuePolicy, Decider] = WeakKeyDictionary()
_LOCK = Lock()
"""Two threads that made one each would leave the rows of the first with the address of one that is gone."""


def decider_of(policy: ValuePolicy) -> Decider:
    """The decisions of `policy` in the engine's terms, made once per policy object."""
    with _LOCK:
        found = _DECIDERS.get(policy)
        if found is None:
            found = _DECIDERS[policy] = _made(policy)
    return found


def _made(policy: ValuePolicy) -> Decider:
    arrays, space = policy.weights.arrays, policy.space
    return Decider(
        layer=policy.layer,
        read=(arrays["read.weight"], arrays["read.bias"]),
        head=(arrays["head.weight"], arrays["head.bias"]),
        scale=arrays["scale"],
        trust=arrays["trust"],
        levels=[np.array(levels, dtype=np.float64) for levels in (space.attention, space.mlp, space.bits)],
        own_cost=list(policy.own_cost),
        fixed_cost=list(policy.fixed_cost),
        curves=[curve.rising for curve in policy.curves],
        prices=FALLING_PRICES,
        clamp=policy.clamp,
    )
