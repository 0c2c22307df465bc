"""What the pages say in words about larger models on an AMD EPYC (Zen 5), see `statements`."""

import published as of
from statements import says, tied, won
from statements_larger import loss


def step(size: str, context: int, setting: str = "dense", peer: str | None = None) -> float:
    """Milliseconds of a step of one row."""
    found = of.read(f"engine-{size}-zen5")
    one = found if peer is None else found["peers"][peer]
    return float(one["contexts"][str(context)]["step_ms"][setting]["1"]["median"])


@says("docs/results.md", "those of the 1.5B about as long, and on a newer processor 0.82 to 0.97 of the time.")
def the_larger_model_beside_llama_cpp() -> bool:
    def share(context: int) -> float:
        theirs = min(step("1.5b", context, peer=peer) for peer in ("llama.cpp", "llama.cpp fused"))
        return round(step("1.5b", context) / theirs, 2)

    shares = [share(context) for context in (64, 1024, 4096)]
    return (min(shares), max(shares)) == (0.82, 0.97)


@says("docs/results.md", "On Zen 5 after 1,024 tokens: 33.0 against 30.9.")
def every_logit_of_the_larger_model() -> bool:
    ours, theirs = step("1.5b", 1024, "dense, every logit"), step("1.5b", 1024, peer="llama.cpp")
    return (round(ours, 1), round(theirs, 1)) == (33.0, 30.9)


@says("docs/results.md", "In one of its three rounds the dense step of the 1.5B after 1,024 tokens took 20.1 ms")
def memory_was_faster_at_times() -> bool:
    rounds = of.read("engine-1.5b-zen5")["contexts"]["1024"]["step_ms"]["dense"]["1"]
    return round(rounds["low"], 1) == 20.1 and rounds["median"] > 29


@says("docs/results.md", "Times differ by at most 2.4 %. Thresholds keep up to 0.018 more of the channels")
def thresholds_take_no_longer() -> bool:
    apart, more = [], []
    for size in ("0.5b", "1.5b"):
        arms = of.read(f"thresholds-{size}")["arms"]
        for level in ("0.8", "0.6", "0.4"):
            first, second = arms[f"thresholds {level}"], arms[f"exact {level}"]
            apart.append(abs(first["ms"] / second["ms"] - 1))
            more.append(first["share"] - second["share"])
    return round(100 * max(apart), 1) == 2.4 and round(max(more), 3) == 0.018


@says("docs/results.md", "On the 0.5B than uniform settings at both; it ties with its allocation without the network")
@says(
    "docs/results.md",
    "than that of *uniform* at both budgets, and than that of *constant* at 0.85. It ties with *allocated*.",
)
def text_that_the_smaller_model_wrote() -> bool:
    points = of.read("free-running-0.5b")["points"]
    found = {arm: [of.kl_difference(point, arm) for point in points] for arm in ("uniform", "constant", "allocated")}
    better = all(map(won, found["uniform"])) and [won(one) for one in found["constant"]] == [False, True]
    return better and tied(found["constant"][0]) and all(map(tied, found["allocated"]))


@says(
    "docs/results.md",
    "1.26 times as fast as its dense steps for 0.040 nats and 1.38 times for 0.119, after 512 tokens of",
)
def a_file_of_eight_bits() -> bool:
    near, far = (loss("fitted-0.5b-q8_0", budget)[:2] for budget in (0.795, 0.726))
    return (near, far) == ((1.26, 0.040), (1.38, 0.119)) and of.settings("fitted-0.5b-q8_0")["texts"] == 48
