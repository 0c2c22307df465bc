"""What the pages say in words about larger models, see `statements`."""

from itertools import pairwise
from math import inf

import published as of
import published_field as field
import published_ladder as ladder
import published_speed as timed
from peers import LOOKED_UP
from published import Difference
from statements import says, tied, won


def fitted(arm: str, size: str = "0.5b-1024") -> list[Difference]:
    """Policy minus `arm` of a model's fitted policy, by rising budget."""
    points = [point for point in of.read(f"fitted-{size}")["points"] if point["arm"] == arm and point["budget"] < 1]
    return [Difference.of(point["difference"]) for point in sorted(points, key=lambda point: point["budget"])]


@says("README.md", "a policy of `solm fit` beats uniform settings at five of eight budgets")
@says(
    "docs/results.md",
    "The policy beats *uniform*, *thresholds* and *constant* at the five lowest budgets each, and ties",
)
@says("docs/results.md", "On the 0.5B it beats uniform settings and thresholds alone at five of eight budgets.")
@says("docs/limits.md", "and thresholds alone, every layer alike, at the five lowest each.")
def the_smaller_policy() -> bool:
    against = [fitted(arm) for arm in ("uniform", "constant", "teal")]
    return all(len(found) == 8 and all(map(won, found[:5])) and all(map(tied, found[5:])) for found in against)


@says("README.md", "Most of the gain comes from allocation and thresholds together.")
def mostly_without_the_network() -> bool:
    """At the budgets where the policy beats uniform settings."""
    pairs = list(zip(fitted("uniform"), fitted("allocated"), strict=True))[:5]
    return all(-uniform.value / 2 > -allocated.value for uniform, allocated in pairs)


@says("README.md", "The 0.5B's network shows no gain.")
@says("docs/results.md", "To *allocated* it **loses** at one budget, by 0.012 nats, and ties with it at seven")
@says("docs/results.md", "on the 0.5B by 0.012 nats at 0.741 of the time")
@says("docs/limits.md", "without the network it ties at seven budgets and loses at one.")
def the_network_of_the_smaller_policy() -> bool:
    found = fitted("allocated")
    return len(found) == 8 and sum(map(tied, found)) == 7 and found[2].low > 0 and round(found[2].value, 3) == 0.012


def loss(name: str, budget: float) -> tuple[float, float, Difference]:
    """Of the smaller model's policy in docs/results/`name`.json: how many times as fast as dense it is, the nats per
    token that it loses, to three digits, and the difference to dense."""
    points = of.read(name)["points"]
    ours, dense = (next(p for p in points if (p["arm"], p["budget"]) == (arm, budget)) for arm in ("policy", "dense"))
    difference = Difference.of(dense["difference"])
    return round(points[0]["step_ms"] / ours["step_ms"], 2), round(difference.value, 3), difference


@says("README.md", "`mlp=0.72` saves 0 to 15 % of a step, by model, context and processor.")
@says("docs/limits.md", "MLP 0.8 saves 6 to 15 % of a step, MLP 0.6 11 to 23 %")
@says("docs/results.md", "MLP 0.6 saves 11 to 23 % of a step, MLP 0.8 6 to 15 %")
def small_savings_save_little() -> bool:
    def saved(setting: str) -> tuple[int, int]:
        """Per cent, the least and the most."""
        pairs = [(size, context) for size in timed.LARGER for context in timed.larger_contexts(size)]
        shares = [timed.larger_step(s, "solm", c, setting) / timed.larger_step(s, "solm", c) for s, c in pairs]
        return round(100 * (1 - max(shares))), round(100 * (1 - min(shares)))

    return saved("mlp 0.8") == (6, 15) and saved("mlp 0.6") == (11, 23)


@says(
    "docs/results.md",
    "Greedy steps of the 0.5B take at most two thirds of the time of llama.cpp's steps, which compute every logit; "
    "those of the 1.5B about as long",
)
@says("docs/results.md", "Both read prompts faster.")
@says("docs/results.md", "After 16,384 tokens a fifth of the pages saves 42 %")
def larger_models_beside_llama_cpp() -> bool:
    def share(size: str, context: int) -> float:
        return timed.larger_step(size, "solm", context) / timed.larger_step(size, "llama.cpp", context)

    small, large = ([share(size, context) for context in timed.larger_contexts(size)] for size in timed.LARGER)
    prompts = [
        timed.larger_prompt(size, "solm", 1024) / timed.larger_prompt(size, "llama.cpp", 1024) for size in timed.LARGER
    ]
    pages = timed.larger_step("0.5B", "solm", 16384, "pages 0.2") / timed.larger_step("0.5B", "solm", 16384)
    near = max(small) < 0.67 and all(0.9 < one < 1.1 for one in large)
    return near and min(prompts) > 1.5 and round(1 - pages, 2) == 0.42


@says("README.md", "1.21 times as fast as dense after 1,024 tokens, for 0.026 nats per token (200 texts)")
@says("README.md", "After 8,192 it is 1.42 times for 0.051 (20 texts)")
@says("docs/results.md", "After 8,192 tokens it decodes 1.42 times as fast for 0.051 nats per token.")
@says("docs/results.md", "It decodes 1.42 times as fast as dense steps for 0.051 nats per token [+0.033, +0.070].")
@says("docs/results.md", "By step times of Zen 4, on 16 texts, that was 1.44 times for 0.035")
@says("docs/results.md", "After 64 tokens, on 48 texts, it is 1.20 times as fast for 0.028")
@says("docs/results.md", "on 96 texts, it decoded 1.20 times as fast as dense steps for 0.046 nats per token")
def the_smaller_policy_on_the_clock() -> bool:
    told = {
        ("fitted-0.5b", 0.836): (1.2, 0.046, 96), ("fitted-0.5b-1024", 0.828): (1.21, 0.026, 200),
        ("fitted-0.5b-8192-zen5", 0.705): (1.42, 0.051, 20), ("curve-0.5b-8192", 0.692): (1.44, 0.035, 16),
        ("fitted-0.5b-64-zen5", 0.836): (1.2, 0.028, 48),
    }  # fmt: skip
    known = all((*loss(*place)[:2], of.settings(place[0])["texts"]) == found for place, found in told.items())
    whole = loss("fitted-0.5b-8192-zen5", 0.705)[2]
    return known and (round(whole.low, 3), round(whole.high, 3)) == (0.033, 0.070)


@says("docs/results.md", "where both compute every logit: 38.4 ms per step against 32.8.")
def every_logit_of_the_larger_model() -> bool:
    ours, theirs = (
        timed.larger_step("1.5B", "solm", 64, "dense, every logit"),
        timed.larger_step("1.5B", "llama.cpp", 64),
    )
    return (round(ours, 1), round(theirs, 1)) == (38.4, 32.8)


@says("docs/results.md", "To llama.cpp in the second start of the 0.5B, 1.0 s against 0.6.")
def starts_of_the_smaller_model() -> bool:
    return [round(timed.larger_start("0.5B", engine)[0], 1) for engine in ("solm", "llama.cpp")] == [1.0, 0.6]


@says("docs/results.md", "To uniform on the 0.5B: by 0.005 nats on joint-27 at net keep 0.75,")
def a_small_loss_on_a_grid() -> bool:
    grid = next(one for one in of.comparisons("paper-0.5b", "joint-27") if one.net_keep == 0.75).policy_minus["uniform"]
    return grid.low > 0 and round(grid.value, 3) == 0.005


@says("docs/results.md", "After 1,024 tokens OpenVINO with prompt lookup takes no longer per token than")
@says("docs/results.md", "at the other places prompt lookup took longer than the same library's plain steps.")
def what_prompt_lookup_saves() -> bool:
    engines = {engine.name: engine for engine in field.field("0.5B")}
    slower = {}
    for name, engine in engines.items():
        plain = engines[name.replace(" lookup", "")]
        for context in (64, 1024) if "lookup" in name else ():
            slower[name, context] = (engine.step(context, LOOKED_UP) or 0) > (plain.step(context, "dense") or inf)
    at, solm = ("openvino lookup, Q4_0", 1024), engines["solm"].step(1024, "dense") or 0
    near = (engines[at[0]].step(1024, LOOKED_UP) or inf) <= solm
    return len(slower) == 6 and near and [place for place, one in slower.items() if not one] == [at]


@says("docs/results.md", "At the lowest budget and at 0.779 of the time the policy beats *uniform* and *thresholds*")
@says("docs/results.md", "**loses** to *uniform* and to *thresholds*, by less than 0.008 nats.")
@says(
    "docs/results.md",
    "and by 0.005 after 8,192 tokens at 0.926 of the time, where it loses to thresholds, too, by 0.007.",
)
def the_smaller_policy_after_long_contexts() -> bool:
    uniform, teal, constant = (fitted(arm, "0.5b-8192-zen5") for arm in ("uniform", "teal", "constant"))
    best = [won(one) for one in uniform] == [won(one) for one in teal] == [True, False, True, False, False]
    worst = uniform[-1].low > 0 and teal[-1].low > 0 and max(uniform[-1].value, teal[-1].value) < 0.008
    apart = (round(uniform[-1].value, 3), round(teal[-1].value, 3)) == (0.005, 0.007)
    return best and worst and apart and [won(one) for one in constant] == [True, False, False, False, False]


@says("docs/results.md", "0.147 nats in place of 0.100 at 0.621 of the time, 0.041 in place of 0.025 at 0.696")
def what_knowing_long_contexts_gains() -> bool:
    found = [loss(f"fitted-0.5b-8192{name}", budget)[1] for budget in (0.621, 0.696) for name in ("-unaware", "")]
    return found == [0.147, 0.1, 0.041, 0.025]


@says("README.md", "on the 1.5B at six.")
@says("docs/results.md", "On the 1.5B it beats both at six")
@says("docs/limits.md", "a policy beats uniform settings and thresholds alone at the six lowest of eight budgets.")
@says(
    "docs/results.md", "It beats *uniform* and *thresholds* at the six lowest budgets each, and ties with them above."
)
def the_larger_policy() -> bool:
    against = [fitted(arm, "1.5b-1024") for arm in ("uniform", "teal")]
    return all(len(found) == 8 and all(map(won, found[:6])) and all(map(tied, found[6:])) for found in against)


@says("docs/results.md", "It beats *constant* at the lowest and **loses** to it at one, by 0.002 nats.")
@says("docs/results.md", "It beats *allocated* at the lowest and **loses** to it at one, by 0.010.")
@says(
    "docs/results.md",
    "on the 1.5B by 0.010 at 0.735. To constants under that allocation on the 1.5B, by 0.002 at 0.912.",
)
def where_the_larger_policy_loses() -> bool:
    lost = []
    for arm in ("constant", "allocated"):
        found = fitted(arm, "1.5b-1024")
        lost += [(place, round(one.value, 3)) for place, one in enumerate(found) if one.low > 0]
        if not won(found[0]) or sum(map(tied, found)) != 6:
            return False
    return lost == [(6, 0.002), (2, 0.010)]


@says("docs/results.md", "It beats *uniform* at the five lowest budgets, *constant* at six and *thresholds* at four")
@says("docs/results.md", "Against *allocated* it wins at one, **loses** at one and ties at six: here, too, ")
def the_smallest_policy() -> bool:
    expected = {"uniform": 5, "constant": 6, "teal": 4, "allocated": 1}
    against = {arm: fitted(arm, "135m") for arm in expected}
    counts = {arm: sum(map(won, found)) for arm, found in against.items()}
    return counts == expected and all(map(won, against["uniform"][:5])) and sum(map(tied, against["allocated"])) == 6


@says("docs/results.md", "Longer fits lose less at the two lower budgets; at the others they lose the same.")
def longer_fits() -> bool:
    def losses(minutes: int) -> list[float]:
        points = of.read(f"fitted-minutes/{minutes}")["points"]
        ours = sorted((point["budget"], point["nats"]) for point in points if point["arm"] == "policy")
        return [nats - points[0]["nats"] for _, nats in ours]

    first, second, *others = zip(*map(losses, of.FIT_MINUTES), strict=True)
    falling = all(longer < shorter for row in (first, second) for shorter, longer in pairwise(row))
    return falling and all(max(row) - min(row) < 0.002 for row in others)


def verdicts(model: str) -> list[str]:
    """How budgets on a model compare with dense files, by its settings."""
    every = ladder.rungs()
    dialled = [rung for rung in every if rung.dialled and rung.model == model]
    return [str(ladder.verdict(rung, ladder.rival(rung, every))) for rung in dialled]


@says("docs/results.md", "On the 1.5B at three of four budgets, by median times. On the 0.5B never")
def the_dial_beside_smaller_files() -> bool:
    larger, smaller = verdicts("Qwen2.5-Coder-1.5B"), verdicts("Qwen2.5-Coder-0.5B")
    return sorted(larger) == ["ties", "wins", "wins", "wins"] and set(smaller) == {"loses"}


@says("docs/results.md", "only budget 0.726 is apart from the dense file in time, on the 0.5B and on the 1.5B")
def times_that_are_apart() -> bool:
    every = [rung for rung in ladder.rungs() if rung.own_type]
    dense = {rung.model: rung for rung in every if not rung.dialled}
    return [(rung.model, rung.setting) for rung in every if rung.slowest < dense[rung.model].fastest] == [
        ("Qwen2.5-Coder-0.5B", "budget 0.726"), ("Qwen2.5-Coder-1.5B", "budget 0.726"),
    ]  # fmt: skip


@says("docs/results.md", "This file is near chance on MMLU (25 %)")
@says("docs/results.md", "the policy's is above that of uniform at 0.8, 0.85 and 0.9")
def mmlu_at_size() -> bool:
    points = of.read("tasks-0.5b/mmlu")["points"]
    [dense] = [point for point in points if point["arm"] == "dense"]
    margins = {(point["arm"], point["budget"]): point["differences"].get("margin") for point in points}
    better = all(margins["uniform", budget]["low"] > 0 for budget in (0.8, 0.85, 0.9))
    rivals = [margins[arm, budget] for arm in ("allocated", "constant") for budget in (0.75, 0.8, 0.85, 0.9)]
    return 0.23 < dense["scores"]["acc"] < 0.29 and better and all(one["low"] < 0 < one["high"] for one in rivals)


@says("docs/results.md", "nothing that was tried saves 3 % more of the divergence on both models")
@says("docs/results.md", "Known sensitivities would save 20 to 26 % more")
def seeing_more_saves_little() -> bool:
    models = [of.read(name)["arms"] for name in ("features-135m", "features-0.5b")]
    tried = [name for name in models[0] if not name.startswith("known")]
    most = max(min(arms[name]["more"]["value"] for arms in models) for name in tried)
    known = [round(100 * arms["known"]["more"]["value"]) for arms in models]
    return most < 0.03 and known == [20, 26]
