"""What the pages say in words about larger models on an AMD EPYC (Zen 5), see `statements`."""

import published as of
from statements import says, tied, won
from statements_larger import loss


@says("docs/results-speed.md", "In the fastest round the dense step of the 1.5B after 1,024 tokens took 20.4 ms.")
def memory_was_faster_at_times() -> bool:
    rounds = of.read("engine-1.5b")["contexts"]["1024"]["step_ms"]["dense"]["1"]
    return round(rounds["low"], 1) == 20.4 and rounds["median"] > 27


@says("docs/results-speed.md", "Times differ by at most 2.4 %. Thresholds keep up to 0.018 more of the channels")
def thresholds_take_no_longer() -> bool:
    apart, more = [], []
    for size in ("0.5b", "1.5b"):
        arms = of.read(f"thresholds-{size}")["arms"]
        for level in ("0.8", "0.6", "0.4"):
            first, second = arms[f"thresholds {level}"], arms[f"exact {level}"]
            apart.append(abs(first["ms"] / second["ms"] - 1))
            more.append(first["share"] - second["share"])
    return round(100 * max(apart), 1) == 2.4 and round(max(more), 3) == 0.018


@says(
    "docs/results.md",
    "On the 0.5B it loses less than uniform settings at both, and at 0.85 also less than its allocation without",
)
@says(
    "docs/results-tasks.md",
    "At 0.85 the policy's text is closer to the dense model's than those of *uniform*, *constant*",
)
@says("docs/results-tasks.md", "At 0.7 it is closer than that of *uniform*, and ties with the others.")
def text_that_the_smaller_model_wrote() -> bool:
    points = of.read("free-running-0.5b")["points"]
    low, high = ([of.kl_difference(point, arm) for arm in ("uniform", "constant", "allocated")] for point in points)
    return all(map(won, high)) and won(low[0]) and all(map(tied, low[1:]))


@says(
    "docs/results-quality.md",
    "1.26 times as fast as its dense steps for 0.040 nats and 1.38 times for 0.119, after 512 tokens of",
)
def a_file_of_eight_bits() -> bool:
    near, far = (loss("fitted-0.5b-q8_0", budget)[:2] for budget in (0.795, 0.726))
    return (near, far) == ((1.26, 0.040), (1.38, 0.119)) and of.settings("fitted-0.5b-q8_0")["texts"] == 48
