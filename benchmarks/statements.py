"""What the pages say in words about the results, each beside the results that make it true.

`python benchmarks/tables.py --check` fails where a sentence is no longer on its page, where its results say otherwise,
and where a page states a quantity or shows a table of numbers that neither a statement nor a table accounts for.
"""

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from math import log

import published as of
import published_speed as timed
from published import Difference

STATEMENTS: list[tuple[str, str, Callable[[], bool]]] = []
"""Page, words that stand on it (line breaks count as spaces), and whether the results agree."""


def says(page: str, words: str) -> Callable[[Callable[[], bool]], Callable[[], bool]]:
    """Register a function that tells whether `words`, which stand on `page`, are true."""

    def register(true: Callable[[], bool]) -> Callable[[], bool]:
        STATEMENTS.append((page, words, true))
        return true

    return register


DEFINITIONS = ("95 % interval", "0.05 nats are 5 % of perplexity", "0.05 nats is 5 % of perplexity")
QUANTITY = re.compile(
    r"\d[\d.,]*(?: (?:to|and) [\d.,]+)? ?(?:%|×|ms\b|milliseconds|nats|times\b|tokens/s|tokens per second)"
)
GENERATED = re.compile(r"<!-- table.*?<!-- end -->|^```.*?^```", re.DOTALL | re.MULTILINE)


def wrong() -> Iterator[str]:
    """A line for every statement that is missing or no longer true, and for every number without a source."""
    said: dict[str, list[str]] = {}
    for page, words, true in STATEMENTS:
        said.setdefault(page, []).append(words)
        if words not in " ".join((of.ROOT / page).read_text().split()):
            yield f"{page}: does not say any more: {words!r}"
        elif not true():
            yield f"{page}: the results say otherwise: {words!r}"
    for path in [of.ROOT / "README.md", *sorted((of.ROOT / "docs").glob("*.md"))]:
        page = path.relative_to(of.ROOT).as_posix()
        written = GENERATED.sub("", path.read_text())
        if "---:" in written:
            yield f"{page}: a table of numbers that is not written from the results"
        prose = " ".join(re.sub(r"`[^`]*`", "", written).split())
        for words in (*DEFINITIONS, *said.get(page, [])):
            prose = prose.replace(" ".join(re.sub(r"`[^`]*`", "", words).split()), "")
        for found in QUANTITY.findall(prose):
            yield f"{page}: no statement says where {found!r} comes from"


def won(found: Difference) -> bool:
    return found.high < 0


def tied(found: Difference) -> bool:
    return found.low <= 0 <= found.high


def factor(context: int, limit: float) -> float:
    """How many times as fast as dense the fastest setting is that costs at most `limit` of perplexity."""
    return timed.dial_dense(context) / timed.fastest(context, log(1 + limit)).milliseconds["policy"]


# Time


@says("docs/results-speed.md", "The dial adds little at 1,024 tokens of context, and doubles the speed at 8,064")
def little_then_double() -> bool:
    return factor(1024, 0.05) < 1.1 and factor(8064, 0.05) > 2


LOGITS = "dense, every logit"


@says("docs/budget.md", "nearly twice as fast")
def a_fifth_of_the_pages() -> bool:
    [pages] = [setting for setting in timed.dial(8064) if (setting.pages, setting.mlp) == (0.2, 1)]
    return 1.8 < timed.dial_dense(8064) / pages.milliseconds["policy"] < 2 and pages.loss["policy"].low < 0.01


@says("docs/faq.md", "solm's dense step was faster on both machines that were measured")
def beside_llama_cpp() -> bool:
    def fastest(name: str, context: int, **wanted: str) -> float:
        points = (point for point in of.read(name)["points"] if wanted.items() <= point.items())
        return min(p["milliseconds"]["median"] for p in points if p["context"] == context)

    def gain(name: str, context: int, theirs: str, ours: str) -> float:
        llama = fastest(name, context, engine="llama.cpp", precision=theirs)
        return llama / fastest(name, context, engine="cpu", precision=ours, kv_cache="auto", setting=LOGITS)

    pairs = (("Q8_0", "int8"), ("Q4_1", "int4"))
    found = [gain(name, at, *pair) for name in ("engine", "engine-avx2") for at in timed.contexts() for pair in pairs]
    return min(found) > 1


# The same shares: uniform, allocated, policy


@says(
    "docs/results-quality.md", "The allocation wins at all eight settings, and the policy wins further at four of them"
)
def eight_and_four() -> bool:
    minus = [setting.policy_minus for setting in timed.dial(1024)]
    further = sum(won(each["allocated"]) for each in minus)
    return len(minus) == 8 and all(won(each["allocated minus uniform"]) for each in minus) and further == 4


@says("docs/results-quality.md", "loses less than it at three of eight settings, more at three, and as much at two")
@says(
    "docs/results-quality.md", "loses more than the policy at five settings and less at one; at two, none is as fast."
)
@says("docs/results.md", "less than the best uniform setting that takes no longer at five of six settings, more at one")
@says("docs/limits.md", "than the best uniform setting that takes no longer at five of six settings, and more at one")
@says("docs/limits.md", "it loses less at three of eight, more at three, and as much at two")
def in_the_same_time() -> bool:
    def counts(arm: str) -> tuple[int, int, int]:
        """Settings at which the policy loses less, more, and as much."""
        found = [
            of.Difference.of(setting[f"best_{arm}_in_time_of_policy"]["this_minus_it"])
            for setting in of.read("dial-1024")["contexts"]["1024"]["settings"]
            if setting[f"best_{arm}_in_time_of_policy"] is not None
        ]
        less, alike = sum(map(won, found)), sum(map(tied, found))
        return less, len(found) - less - alike, alike

    return counts("allocated") == (3, 3, 2) and counts("uniform") == (5, 1, 0)


@says("docs/results-quality.md", "It takes up to 1.6 % longer")
def longer() -> bool:
    times = [setting.milliseconds for setting in timed.dial(1024)]
    return round(100 * max(time["policy"] / time["allocated"] - 1 for time in times), 1) == 1.6


@says("docs/how-it-works.md", "On SmolLM2-135M most of what is won comes from this")
@says("docs/faq.md", "gives most of the gain on SmolLM2-135M")
def mostly_allocation() -> bool:
    losses = [{arm: setting.loss[arm].value for arm in timed.DIAL_ARMS} for setting in timed.dial(1024)]
    return all(loss["uniform"] - loss["allocated"] > (loss["uniform"] - loss["policy"]) / 2 for loss in losses)


@says("docs/results-quality.md", "After 8,064 tokens (5 books) most differences are within the noise")
def noise_in_books() -> bool:
    found = [
        setting.policy_minus[name] for setting in timed.dial(8064) for name in ("allocated", "allocated minus uniform")
    ]
    return sum(each.low > 0 or each.high < 0 for each in found) < len(found) / 5


@says("docs/results.md", "at a tenth of the pages of 8,064 tokens")
@says("docs/limits.md", "loses to uniform pages at a tenth of the pages of 8,064 tokens")
def allocation_loses_far_back() -> bool:
    arms = of.books()[8064]
    uniform, allocated = (arms[of.book_arm(arm, 0.1)]["nats"] for arm in ("uniform", "allocated"))
    return bool(uniform < allocated)


@says("docs/results-quality.md", "The policy beats a constant rate nowhere here")
def no_win_over_a_constant_rate() -> bool:
    arms = [arm for found in of.books().values() for name, arm in found.items() if name.startswith("policy")]
    return not any(won(Difference.of(arm["minus_constant"])) for arm in arms)


# Baselines


@says(
    "docs/results.md", "On the 135M the policy always beats *uniform*. In the space `fine` it always beats *allocated*"
)
def always() -> bool:
    spaces = ("fine", "attention-fine", "mlp-fine", "bits-fine", "joint-8", "joint-27", "joint-336")
    found = [each for space in spaces for each in of.comparisons("policies", space)]
    fine = of.comparisons("policies", "fine")
    return all(won(c.policy_minus["uniform"]) for c in found) and all(won(c.policy_minus["allocated"]) for c in fine)


@says("docs/results-method.md", "a constant between the levels beats it on the joint grids that are coarsest")
def constants_between_levels() -> bool:
    found = [each for space in ("joint-8", "joint-27") for each in of.comparisons("policies", space)]
    return all(each.above_dense["constant"] < each.above_dense["policy"] for each in found)


@says("docs/results-method.md", "Thresholds lose less than the policy on the MLP axis alone")
@says("docs/limits.md", "thresholds on channels lose less than a policy that takes exact numbers of channels")
def thresholds_win() -> bool:
    return all(each.policy_minus["thresholds"].low > 0 for each in of.comparisons("rules", "mlp-fine"))


@says("docs/results-method.md", "On runs this short the policy **loses** to the best of 500 at the two higher budgets")
def loses_to_the_best_of_500() -> bool:
    lowest, *others = (Difference.of(point["policy_minus_best"]) for point in of.best_of())
    return lowest.low < 0 and len(others) == 2 and all(each.low > 0 for each in others)


@says("docs/results-method.md", "it beats `allocated` at the lowest budget and loses slightly to it at the highest")
def short_runs() -> bool:
    lowest, _, highest = (each.policy_minus["allocated"] for each in of.comparisons(".", "short-runs"))
    return won(lowest) and highest.low > 0 and highest.value < 0.01


# Tasks, generated text, training


@says("docs/results.md", "the policy's accuracy cannot be told from dense on any task")
def accuracy_is_kept() -> bool:
    points = [point for task in of.TASKS for point in of.task_points(task) if point["arm"] == "policy"]
    found = [Difference.of(point["differences"]["acc"]) for point in points]
    return all(each.low <= 0 <= each.high for each in found) and min(point["budget"] for point in points) == 0.55


def margins(task: str, arm: str) -> dict[float, Difference]:
    """Per budget the policy's log-likelihood margin minus that of `arm`; of the arm policy: minus dense."""
    points = (point for point in of.task_points(task) if point["arm"] == arm)
    return {point["budget"]: Difference.of(point["differences"]["margin"]) for point in points}


@says("docs/results-tasks.md", "On LAMBADA the policy's margin at net keep 0.55 and 0.65 is **below** that of uniform")
def lambada_margin() -> bool:
    return [budget for budget, found in margins("lambada_openai", "uniform").items() if won(found)] == [0.55, 0.65]


@says("docs/results-tasks.md", "On ARC-Easy it is **below** dense at 0.55")
def arc_margin() -> bool:
    return [budget for budget, found in margins("arc_easy", "policy").items() if won(found)] == [0.55]


@says("docs/results.md", "Yes, at both budgets")
def free_text() -> bool:
    found = [of.kl_difference(point, arm) for point in of.free_running() for arm in ("allocated", "uniform")]
    return len(found) == 4 and all(map(won, found))


@says("docs/how-it-works.md", "far behind for equal minutes")
@says("docs/history.md", "far behind regression")
def policy_gradient_is_behind() -> bool:
    found = {(point["method"], point["limit"]): Difference.of(point["difference"]) for point in of.learning()}
    return all(
        found["values", minutes].high < found[method, minutes].low
        for minutes in (6, 12)
        for method in ("grpo", "grpo-paper")
    )


@says("docs/results-method.md", "Against all samples it never gained. It lost once, and tied otherwise.")
@says("docs/history.md", "no gain over regression on")
def fine_tuning_adds_nothing() -> bool:
    found = [
        Difference.of(point["fine_tuned_minus_all"])
        for name in ("fine-tuning-135m", "fine-tuning-135m-slow")
        for point in of.read(name)["points"]
    ]
    return sum(map(tied, found)) == len(found) - 1 and sum(one.low > 0 for one in found) == 1


@says("docs/results-method.md", "No difference is beyond the noise. `results/own")
def own_texts_change_nothing() -> bool:
    found = [
        Difference.of(point["difference"])
        for name in ("own-texts-135m-given", "own-texts-135m-own")
        for point in of.read(name)["points"]
        if point["arm"] == "given"
    ]
    return len(found) == 10 and all(map(tied, found))


@says("docs/results-speed.md", "It pays only below all bits: with both halves of every weight a dense step is slower")
def halves() -> bool:
    dense = [setting for setting in of.nested() if setting["pages"] == setting["mlp"] == 1]
    speeds = [setting["allocated"]["speedup"] for setting in sorted(dense, key=lambda setting: -setting["bits"])]
    return speeds[0] < 1 < speeds[-1] and all(slower < faster for slower, faster in pairwise(speeds))
