"""What the pages say in words about the paper's grids and its training on a larger model, see `statements`."""

import json

import published as of
from published import Difference
from statements import says, tied, won
from tables_context import DRIFT


@says(
    "docs/results-method.md",
    "On joint-27 the policy beats *uniform* at four of twelve budgets, all of them at most 0.65",
)
@says("docs/results-method.md", "ties at seven, and loses by 0.005 nats at one.")
@says("docs/results.md", "On the paper's grid joint-27 it beats *uniform* at four of twelve budgets on the 0.5B")
@says("docs/results.md", "on the 0.5B on joint-27 from 0.7 to 0.9, on bits-fine at 0.777,")
@says(
    "docs/results-method.md",
    "It beats the best of 500 at one and **loses** to it from 0.7 to 0.9, by at most 0.018 nats.",
)
@says("docs/results-method.md", "loses less than the policy at the four lowest budgets and at 0.75. More is won by how")
@says("docs/results.md", "on the 0.5B on joint-8 at 0.48 and on joint-27 from 0.4 to 0.55 and at 0.75.")
def the_papers_grid_on_the_smaller_model() -> bool:
    found = of.comparisons("paper-0.5b", "joint-27")
    uniform = {one.net_keep: one.policy_minus["uniform"] for one in found}
    beaten = [keep for keep, difference in uniform.items() if won(difference)]
    lost = [difference.value for difference in uniform.values() if difference.low > 0]
    known = len(found) == 12 and len(beaten) == 4 and max(beaten) == 0.65 and [round(one, 3) for one in lost] == [0.005]
    random = {one.net_keep: one.policy_minus["best of 500"] for one in found}
    worse = {keep: difference.value for keep, difference in random.items() if difference.low > 0}
    best = sum(map(won, random.values())) == 1 and list(worse) == [0.7, 0.75, 0.8, 0.85, 0.9]
    bits = {one.net_keep: one.policy_minus["best of 500"] for one in of.comparisons("paper-0.5b", "bits-fine")}
    best = best and [keep for keep, difference in bits.items() if difference.low > 0] == [0.777]
    between = {
        (space, one.net_keep) for space in ("joint-8", "joint-27", "joint-336")
        for one in of.comparisons("paper-0.5b", space) if one.policy_minus["constant"].low > 0
    }  # fmt: skip
    lost_to_constant = {("joint-8", 0.48), *(("joint-27", keep) for keep in (0.4, 0.45, 0.5, 0.55, 0.75))}
    return known and best and round(max(worse.values()), 3) == 0.018 and between == lost_to_constant


@says(
    "docs/results-method.md",
    "at equal net keep the policy loses 0.013 to 0.057 nats on the attention axis,",
)
@says(
    "docs/results-method.md",
    "in place of 0.271 to 0.401 as the paper carries actions out, and 0.102 to 0.278 in place of",
)
@says(
    "docs/results-method.md",
    "0.153 to 0.369 on the MLP axis. It beats *uniform* at all four budgets, ties with *allocated*",
)
@says("docs/results.md", "and as solm carries actions out on mlp-fine at 0.855 and on joint-27")
@says("docs/results-method.md", "with *constant* at three, and **loses** to the best of 500 at one.")
def single_axes_by_our_own_rules() -> bool:
    found = {
        (folder, space): of.comparisons(folder, space)
        for folder in ("own-0.5b", "paper-0.5b") for space in ("attention-fine", "mlp-fine")
    }  # fmt: skip
    lost = [[round(one.above_dense["policy"], 3) for one in budgets] for budgets in found.values()]
    own = [one.policy_minus for (folder, _), budgets in found.items() for one in budgets if folder == "own-0.5b"]
    return (
        lost == [[0.057, 0.013], [0.278, 0.102], [0.401, 0.271], [0.369, 0.153]]
        and all(won(one["uniform"]) for one in own) and all(tied(one["allocated"]) for one in own)
        and sum(tied(one["constant"]) for one in own) == 3 and sum(won(one["constant"]) for one in own) == 1
        and sum(one["best of 500"].low > 0 for one in own) == 1
    )  # fmt: skip


@says(
    "docs/results-method.md", "0.4 to 0.7 the policy loses 0.013 to 0.389 nats, where in the paper's way it loses 0.043"
)
@says("docs/results-method.md", "*uniform* at the four lowest of twelve budgets, by 0.020 to 0.106 nats, and ties at")
@says("docs/results-method.md", "It beats the best of 500 at 0.45 and 0.5, and **loses** to it at 0.65, 0.7 and from")
@says("docs/results-method.md", "0.85 on, by at most 0.011 nats. *Constant* loses less than the policy at the four")
@says("docs/results-method.md", "budgets, by 0.037 to 0.245 nats, and at 0.7 and 0.93.")
@says("docs/results-method.md", "of half as many batches as the one of the paper's way.")
@says("docs/results.md", "the 0.5B loses less than half as much at net keeps up to 0.7, and *uniform* is again beaten")
@says("docs/results.md", "out: on joint-8 at 0.48, and on joint-27 from 0.4 to 0.55, at 0.7 and at 0.93.")
@says("docs/results.md", "at 0.65, 0.7 and from 0.85 on.")
def joint_grids_by_our_own_rules() -> bool:
    own, paper = (of.comparisons(folder, "joint-27") for folder in ("own-0.5b", "paper-0.5b"))
    lost = [[round(one.above_dense["policy"], 3) for one in found if one.net_keep <= 0.7] for found in (own, paper)]
    uniform = {one.net_keep: one.policy_minus["uniform"] for one in own}
    wins = {keep: round(-minus.value, 3) for keep, minus in uniform.items() if won(minus)}
    ties = sum(map(tied, uniform.values()))
    worse = {
        arm: {one.net_keep: round(one.policy_minus[arm].value, 3) for one in own if one.policy_minus[arm].low > 0}
        for arm in ("best of 500", "constant")
    }
    constant = list(worse["constant"].values())
    joint_8 = of.comparisons("own-0.5b", "joint-8")
    to_constant = [one.net_keep for one in joint_8 if one.policy_minus["constant"].low > 0]
    batches = [
        json.loads((of.RESULTS / f"{name}-0.5b" / "joint-27.json").read_text())["policy"]["config"]["batches"]
        for name in ("own", "paper")
    ]
    return (
        [(min(each), max(each)) for each in lost] == [(0.013, 0.389), (0.043, 0.832)]
        and all(2 * ours < theirs for ours, theirs in zip(*lost, strict=True))
        and list(wins) == [0.4, 0.45, 0.5, 0.55] and (min(wins.values()), max(wins.values()), ties) == (0.020, 0.106, 8)
        and [one.net_keep for one in own if won(one.policy_minus["best of 500"])] == [0.45, 0.5]
        and list(worse["best of 500"]) == [0.65, 0.7, 0.85, 0.9, 0.93] and max(worse["best of 500"].values()) == 0.011
        and list(worse["constant"]) == [0.4, 0.45, 0.5, 0.55, 0.7, 0.93] and to_constant == [0.48]
        and (min(constant[:4]), max(constant[:4])) == (0.037, 0.245) and 2 * batches[0] == batches[1]
    )  # fmt: skip


@says("docs/results.md", "on the 1.5B at 0.45 by 0.086.")
@says("docs/results.md", "and at none of six on the 1.5B")
@says(
    "docs/results.md",
    "to tuned at 0.45 and 0.5, to constants at 0.6 and 0.65, and to the best of 500 at 0.45, 0.55, 0.6 and 0.7.",
)
@says(
    "docs/results-method.md",
    "The policy ties with *uniform* at five of six budgets, and **loses** by 0.086 nats at the",
)
@says(
    "docs/results-method.md",
    "lowest. *Tuned* loses less at the two lowest, *constant* at 0.6 and 0.65, and the best of 500 at",
)
@says(
    "docs/results-method.md",
    "four. An oracle that spends the same on every axis loses 0.06 to 1.49 nats less than the policy.",
)
@says("docs/results-method.md", "with a policy of half as many batches")
def the_papers_grid_on_the_larger_model() -> bool:
    found = of.comparisons("paper-1.5b", "joint-27")

    def lost_to(arm: str) -> list[float]:
        return [one.net_keep for one in found if one.policy_minus[arm].low > 0]

    uniform = [one.policy_minus["uniform"] for one in found]
    batches = [
        json.loads((of.RESULTS / f"paper-{size}b" / "joint-27.json").read_text())["policy"]["config"]["batches"]
        for size in ("0.5", "1.5")
    ]
    oracle = [round(one.policy_minus["oracle"].value, 2) for one in found]
    return (
        len(found) == 6 and lost_to("uniform") == [0.45] and all(map(tied, uniform[1:]))
        and round(uniform[0].value, 3) == 0.086 and lost_to("tuned") == [0.45, 0.5]
        and lost_to("constant") == [0.6, 0.65] and lost_to("best of 500") == [0.45, 0.55, 0.6, 0.7]
        and (min(oracle), max(oracle)) == (0.06, 1.49) and batches == [48, 24]
    )  # fmt: skip


@says("docs/results-method.md", "keeps all pages, 0.81 of the MLP channels and 7 of 16 bits, and loses 0.015 nats.")
@says("docs/results-method.md", "An even split of the same net keep loses 0.146 nats on other text")
def an_even_split_over_the_axes() -> bool:
    ours = next(one for one in of.comparisons("paper-0.5b", "joint-27") if one.net_keep == 0.75)
    points = of.read("paper-0.5b/joint-27")["points"]
    axes = next(point["axes"] for point in points if (point["arm"], point["budget"]) == ("policy", 0.75))
    even = next(one for one in of.comparisons("paper-0.5b", "even-split") if one.net_keep == 0.75)
    split = axes["attention"] == 1 and round(axes["mlp"], 2) == 0.81 and axes["bits"] == 7 / 16
    return split and [round(lost, 3) for lost in (ours.above_dense["policy"], even.above_dense["uniform"])] == [
        0.015,
        0.146,
    ]


@says(
    "docs/results-method.md",
    "After 110 updates of 64 schedules the paper's training loses to *uniform* at all four budgets.",
)
def the_papers_training() -> bool:
    found = of.comparisons("paper-0.5b", "joint-27-policy-gradient")
    made = json.loads((of.RESULTS / "paper-0.5b" / "joint-27-policy-gradient.json").read_text())["policy"]
    lost = [one.policy_minus["uniform"].low > 0 for one in found]
    return lost == [True] * 4 and made["config"]["updates"] == 110


@says(
    "docs/results-quality.md",
    "On SmolLM2-135M the first 16 dense steps after the burst lose 0.094 nats per token, nearly",
)
@says(
    "docs/results-quality.md", "No later stretch loses more than 0.018. On the 0.5B no harm shows in the first 16 steps"
)
@says("docs/results-quality.md", "and 0.030 nats after MLP 0.4 alone. No later stretch loses more than 0.014.")
def dense_steps_after_cheap_ones() -> bool:
    first, later = {}, {}
    for model, name in DRIFT.items():
        after = of.read(name)["after"]
        first[model] = {kind: Difference.of(points[0]) for kind, points in after.items()}
        later[model] = round(max(point["value"] for points in after.values() for point in points[1:]), 3)
    smaller, larger = first.values()
    return (
        round(smaller["all"].value, 3) == 0.094 and smaller["mlp"].value > 0.95 * smaller["all"].value
        and tied(larger["all"]) and round(larger["mlp"].value, 3) == 0.030 and larger["mlp"].low > 0
        and list(later.values()) == [0.018, 0.014]
    )  # fmt: skip


@says("docs/results-method.md", "on the cpu backend with budgets in time: 36 texts × 128 tokens after 1,024.")
@says("docs/results-method.md", "Knowing the next token, the oracle falls below the dense model")
@says("docs/results-method.md", "policy reaches 11 to 35 % over *uniform*, and at most 18 % over *allocated*.")
def an_oracle_in_equal_time() -> bool:
    how, found = of.settings("oracle/fitted-0.5b"), of.comparisons("oracle", "fitted-0.5b")

    def reached(arm: str) -> list[int]:
        lost = (one.above_dense for one in found)
        return [round(100 * (each[arm] - each["policy"]) / (each[arm] - each["oracle"])) for each in lost]

    over_uniform = reached("uniform")
    below = [one.above_dense["oracle"] < 0 for one in found]
    return (
        (how["texts"], how["context"]) == (36, 1024) and below == [False, True, True, True]
        and (min(over_uniform), max(over_uniform), max(reached("allocated"))) == (11, 35, 18)
    )  # fmt: skip


@says(
    "docs/results-method.md",
    "it loses less on `qa` at both budgets, **more** on `web` at 0.855, by 0.016 nats, and as much",
)
@says("docs/results.md", "and on the 0.5B on mlp-fine at 0.855 of net keep on web text, by 0.016.")
@says("docs/results-method.md", "On every source shares are met within 0.004.")
@says(
    "docs/results-method.md",
    "Its network rates tokens of `qa` as less sensitive than those of training, and tokens of the",
)
def text_of_other_sources() -> bool:
    sources = {source["name"]: source for source in of.read("domains-0.5b")["sources"]}
    points = {(name, point["budget"]): point for name, source in sources.items() for point in source["points"]}
    found = {key: Difference.of(point["difference"]) for key, point in points.items()}
    apart = {key: round(one.value, 3) for key, one in found.items() if not tied(one)}
    less = [name for name, source in sources.items() if source["sensitivities"]["mlp"]["mean"] < 1]
    return (
        len(found) == 8 and apart.pop(("web", 0.855)) == 0.016 and list(apart) == [("qa", 0.82), ("qa", 0.855)]
        and max(apart.values()) < 0 and less == ["qa"] and round(max(one["gap"] for one in points.values()), 3) == 0.004
    )  # fmt: skip
