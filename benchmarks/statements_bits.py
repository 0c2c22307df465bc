"""What the pages say in words about a policy that chooses weight bits, see `statements`."""

import published as of
from statements import says, tied, won
from statements_larger import fitted, loss
from tables_fits import BITS, CLOCKED_BITS, INT8_SETTINGS


@says("docs/results-quality.md", "1.45 times as fast as its own dense steps for 0.041 nats per token, and 1.71 times")
@says("docs/results-quality.md", "for 0.116 [+0.106, +0.128]")
@says("docs/results.md", "With 8-bit weights, 1.45 times as fast as its own dense steps for 0.041 nats per token")
def bits_on_the_clock_of_step_times() -> bool:
    lowest = loss(BITS, 0.584)
    told = loss(BITS, 0.688)[:2] == (1.45, 0.041) and lowest[:2] == (1.71, 0.116)
    bounds = round(lowest[2].low, 3), round(lowest[2].high, 3)
    return told and bounds == (0.106, 0.128) and of.settings(BITS)["texts"] == 120


@says("docs/results-quality.md", "It beats *upper bits* at all eight budgets, *uniform* at the six lowest")
@says("docs/results-quality.md", "It **loses** to *allocated* at the lowest budget by 0.009 nats, and ties with it at")
@says("docs/results.md", "on the 0.5B with weight bits at 0.584, by 0.009")
def the_policy_with_bits() -> bool:
    size = BITS.removeprefix("fitted-")
    against = {arm: fitted(arm, size) for arm in ("upper-bits", "uniform", "teal", "constant")}
    wins = {arm: sum(map(won, found)) for arm, found in against.items()}
    lowest = all(all(map(won, found[: wins[arm]])) for arm, found in against.items())
    first, *others = fitted("allocated", size)
    return (
        wins == {"upper-bits": 8, "uniform": 6, "teal": 5, "constant": 2} and lowest
        and all(tied(one) for found in against.values() for one in found if not won(one))
        and first.low > 0 and round(first.value, 3) == 0.009 and all(map(tied, others))
    )  # fmt: skip


@says("docs/results-quality.md", "budgets took 0.02 to 0.07 more of a dense step than they asked for")
@says("docs/results-quality.md", "is 1.26 times as fast as dense int8 steps")
def bits_in_timed_steps() -> bool:
    arms = of.read(CLOCKED_BITS)["arms"]
    more = [1 / arm["ratio"] - arm["asked"] for arm in arms.values() if "asked" in arm]
    ours, int8 = arms["budget 0.688"], arms["int8, dense"]
    beside = int8["ms"]["median"] / ours["ms"]["median"]
    return (round(min(more), 2), round(max(more), 2)) == (0.02, 0.07) and round(beside, 2) == 1.26


@says("docs/results-quality.md", "Dense steps of nested weights took 18.9 ms and those of int8 weights 17.2")
@says("docs/model.md", "18.9 ms in place of 17.2 on the 0.5B")
def dense_steps_of_nested_weights() -> bool:
    arms = of.read(CLOCKED_BITS)["arms"]
    return [round(arms[name]["ms"]["median"], 1) for name in ("dense", "int8, dense")] == [18.9, 17.2]


@says("docs/results-quality.md", "int8 steps at MLP 0.6 took 13.4 ms and lose 0.166 nats")
def channels_alone_with_int8_weights() -> bool:
    arms, found = of.read(CLOCKED_BITS)["arms"], of.read(INT8_SETTINGS)
    lost = found["settings"]["mlp 0.6"]["value"]
    return round(arms["int8, MLP 0.6"]["ms"]["median"], 1) == 13.4 and round(lost, 3) == 0.166 and found["texts"] == 24
