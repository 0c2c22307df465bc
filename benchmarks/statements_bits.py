"""What the pages say in words about a policy that chooses weight bits, see `statements`."""

import published as of
from statements import says, tied, won
from statements_larger import fitted, loss
from tables_aims import speeds
from tables_fits import BITS, CLOCKED_BITS, CLOCKED_LARGER_BITS, INT8_SETTINGS, LARGER_BITS, LONG_BITS


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


@says("docs/results-quality.md", "1.71 times as fast as its own dense steps for 0.028 nats per token, and 1.94 times")
@says("docs/results-quality.md", "for 0.049 [+0.037, +0.060]")
@says("docs/results.md", "on the 1.5B in 8 bits 1.94 times as fast as its own dense steps for 0.049")
@says("README.md", "on Zen 4 the 1.5B is 1.94 times as fast as dense for 0.049 nats.")
def a_larger_model_in_8_bits() -> bool:
    lowest = loss(LARGER_BITS, 0.516)
    told = loss(LARGER_BITS, 0.585)[:2] == (1.71, 0.028) and lowest[:2] == (1.94, 0.049)
    bounds = round(lowest[2].low, 3), round(lowest[2].high, 3)
    return told and bounds == (0.037, 0.060) and of.settings(LARGER_BITS)["texts"] == 48


@says("docs/results-quality.md", "*uniform* and *thresholds* at the six lowest and *allocated* at one,")
@says("docs/results-quality.md", "It ties with *constant* at all eight.")
@says("docs/results-quality.md", "Its network learned nothing from 95 texts,")
def a_larger_policy_with_bits() -> bool:
    size = LARGER_BITS.removeprefix("fitted-")
    against = {arm: fitted(arm, size) for arm in ("upper-bits", "uniform", "teal", "allocated", "constant")}
    wins = {arm: sum(map(won, found)) for arm, found in against.items()}
    lowest = all(all(map(won, against[arm][:6])) for arm in ("uniform", "teal"))
    made = of.read(LARGER_BITS)["policy"]
    return (
        wins == {"upper-bits": 8, "uniform": 6, "teal": 6, "allocated": 1, "constant": 0} and lowest
        and all(tied(one) for found in against.values() for one in found if not won(one))
        and made["config"]["batches"] == 95 and max(made["explained"]) < 0
    )  # fmt: skip


@says(
    "docs/results-quality.md",
    "own bits took 60.7 ms, and those of int8 weights 58.1. Against the latter the policy is 1.65",
)
@says("docs/results-quality.md", "Budgets took at most 0.004 more of a dense step than they asked for. At budget 1,")
def a_larger_model_on_the_clock() -> bool:
    arms = of.read(CLOCKED_LARGER_BITS)["arms"]
    more = [1 / arm["ratio"] - arm["asked"] for arm in arms.values() if "asked" in arm]
    dense, int8, ours, whole = (
        arms[name]["ms"]["median"] for name in ("dense", "int8, dense", "budget 0.585", "budget 1")
    )
    times = (round(dense, 1), round(int8, 1)) == (60.7, 58.1) and whole <= dense
    return times and round(max(more), 3) == 0.004 and round(int8 / ours, 2) == 1.65


@says("docs/results.md", "Without weight bits they were missed by 9 to 21 %.")
def speeds_without_bits() -> bool:
    missed = [100 * (1 - one.reached / one.wanted) for one in speeds()]
    return (round(min(missed)), round(max(missed))) == (9, 21)


@says("docs/results.md", "With them two were missed. One is out of reach: after 8,192 tokens the lowest budget is 1.68")
@says(
    "docs/results-quality.md", "1.48 times as fast as its own dense steps for 0.022 nats per token, and at its lowest"
)
@says("docs/results-quality.md", "budget 1.68 times for 0.063 [+0.047, +0.078].")
def bits_after_long_contexts() -> bool:
    lowest = loss(LONG_BITS, 0.595)
    told = loss(LONG_BITS, 0.676)[:2] == (1.48, 0.022) and lowest[:2] == (1.68, 0.063)
    bounds = round(lowest[2].low, 3), round(lowest[2].high, 3)
    missed = [one for one in speeds() if one.with_bits < one.wanted]
    known = [(one.size, one.context, one.most) for one in missed] == [("0.5B", 1024, 0.05), ("0.5B", 8192, 0.15)]
    return told and bounds == (0.047, 0.078) and of.settings(LONG_BITS)["texts"] == 24 and known


@says(
    "docs/results-quality.md",
    "*thresholds* at the three lowest budgets, and **loses** to both at 0.919, by 0.004 nats.",
)
@says(
    "docs/results-quality.md",
    "It beats *upper bits* at two budgets, and ties otherwise.",
)
@says("docs/results.md", "on the 0.5B with weight bits after 8,192 tokens at 0.919 of the time, by 0.004 nats.")
def the_policy_with_bits_after_long_contexts() -> bool:
    size = LONG_BITS.removeprefix("fitted-")
    against = {arm: fitted(arm, size) for arm in ("uniform", "teal", "upper-bits", "allocated", "constant")}
    wins = {arm: [place for place, one in enumerate(found) if won(one)] for arm, found in against.items()}
    lost = [(arm, round(found[4].value, 3)) for arm, found in against.items() if found[4].low > 0]
    best = {"uniform": [0, 1, 2], "teal": [0, 1, 2], "upper-bits": [1, 2], "allocated": [], "constant": []}
    others = [one for found in against.values() for one in found if not won(one) and not tied(one)]
    return wins == best and lost == [("uniform", 0.004), ("teal", 0.004)] and len(others) == 2
