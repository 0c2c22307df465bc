"""The table of what this project aims at, and what it reached."""

from typing import NamedTuple

import published as of
from cells import markdown, table
from solm.policies.artifact import TrainedPolicy
from statements_serving import at_servers
from tables_fits import BITS, DIVERGED, DIVERGED_LARGER, LARGER_BITS, LONG_BITS, speed_for_loss
from tables_tasks import LARGER, LARGER_ANSWERS, LARGEST, LARGEST_ANSWERS, mmlu_points

_FITTED = {"0.5B": ("fitted-0.5b-1024", BITS), "1.5B": ("fitted-1.5b-1024", LARGER_BITS)}
"""Evaluations of a model's policies: that of its file in 4 to 6 bits, and one that chooses weight bits."""
_DIVERGED = {"0.5B": DIVERGED, "1.5B": DIVERGED_LARGER}
"""Evaluations of the policies that ship which also measured divergences."""
_SPEEDS = (("0.5B", 1024, (1.5, 1.7)), ("1.5B", 1024, (1.5, 1.75)), ("0.5B", 8192, (1.55, 1.8)))
"""Models, contexts, and the speeds that were wanted for losses of at most 0.05 and 0.15 nats."""
_WITH_BITS = {("0.5B", 1024): BITS, ("1.5B", 1024): LARGER_BITS, ("0.5B", 8192): LONG_BITS}


@table
def aims() -> str:
    """Aims that were set before anything was measured: what for, how far, and what was reached."""
    rows = [*_arms(), *_speeds(), *_batches(), *_servers(), *_mmlu()]
    return markdown(("Aim", "wanted", "reached", "met"), rows, words=4)


def _met(yes: bool) -> str:
    return "yes" if yes else "**no**"


def _won(name: str, arm: str, measure: str = "difference") -> int:
    """Budgets at which a policy is better than an arm beyond the noise, by a difference that points have."""
    points = [point for point in of.read(name)["points"] if point["arm"] == arm]
    return sum(point[measure]["high"] < 0 for point in points)


def _arms() -> list[list[str]]:
    rows = []
    for size, (name, bits) in _FITTED.items():
        for arm, words, wanted in (
            ("uniform", "uniform settings", 8), ("constant", "constants under its own allocation", 6),
            ("teal", "thresholds without a policy", 6),
        ):  # fmt: skip
            for of_file, aim, measure in (
                (name, f"policy of `solm fit` on the {size}, 200 texts: better than {words}", "difference"),
                (_DIVERGED[size], f"the same by divergence, {size}", "divergence_difference"),
                (bits, f"the same with weight bits, {size} in 8 bits", "difference"),
            ):
                won = _won(of_file, arm, measure)
                reached = f"at {won}, {of.settings(of_file)['texts']} texts"
                rows.append([aim, f"at {wanted} of 8 budgets", reached, _met(won >= wanted)])
    return rows


class Speed(NamedTuple):
    """How many times as fast as dense steps a policy was to be, losing at most so many nats; how fast the one that
    ships is, by its curve; and one that chooses weight bits, by its evaluation."""

    size: str
    context: int
    most: float
    wanted: float
    reached: float
    with_bits: float


def speeds() -> list[Speed]:
    """Between measured points as the budget loss=0.05 reads a policy's curve."""
    found = []
    for size, context, wanted in _SPEEDS:
        curve = TrainedPolicy.from_pretrained(f"builtin:qwen2.5-coder-{size.lower()}-instruct").curve
        assert curve is not None
        for most, ratio in zip((0.05, 0.15), wanted, strict=True):
            reached, with_bits = (
                1 / curve.share_for_loss(most, context),
                speed_for_loss(most, _WITH_BITS[size, context]),
            )
            found.append(Speed(size, context, most, ratio, reached, with_bits))
    return found


def _speeds() -> list[list[str]]:
    rows = []
    for one in speeds():
        aim = f"speed against dense steps, {one.size} after {one.context:,} tokens, losing at most {one.most} nats"
        rows.append([aim, f"{one.wanted}×", f"{one.reached:.2f}×", _met(one.reached >= one.wanted)])
        texts = of.settings(_WITH_BITS[one.size, one.context])["texts"]
        aim = f"the same with weight bits, {one.size} in 8 bits"
        rows.append([aim, f"{one.wanted}×", f"{one.with_bits:.3f}×, {texts} texts", _met(one.with_bits >= one.wanted)])
    return rows


def _batches() -> list[list[str]]:
    points = of.read("batch-0.5b")["points"]
    dense = next(p for p in points if (p["rows"], p["setting"], p["context"]) == (16, "dense", 150))
    rows = [
        ["dense step of 16 rows of the 0.5B after 150 tokens", "36 ms", f"{dense['milliseconds']['median']:.1f} ms",
         _met(dense["milliseconds"]["median"] <= 36)]
    ]  # fmt: skip
    for count, ratio, most in ((16, 1.25, 0.1), (4, 1.2, 0.05)):
        for context in (150, 4096):
            found = [p["ratio"] for p in points if (p["rows"], p["context"]) == (count, context)
                     and p["setting"] != "dense" and p["loss"]["value"] <= most]  # fmt: skip
            rows.append(
                [f"a budget makes a step of {count} rows faster, after {context:,} tokens, losing at most {most} nats",
                 f"{ratio}×", f"{max(found):.2f}×", _met(max(found) >= ratio)]
            )  # fmt: skip
    return rows


def _servers() -> list[list[str]]:
    ours, vllm, llama = (at_servers(server) for server in ("solm", "vLLM, bfloat16", "llama.cpp, xllamacpp"))
    rows = [
        [f"tokens per second with 16 clients, replies of {length} tokens", f"{wanted}", f"{ours[name, '16']:.0f}",
         _met(ours[name, "16"] >= wanted)]
        for name, length, wanted in (("serve-0.5b", 64, 180), ("serve-0.5b-replies-256", 256, 300))
    ]  # fmt: skip
    least = min(ours[key] / max(vllm[key], llama[key]) for key in ours)
    between = of.read("between-steps-0.5b")["median"]["between"]
    rows += [
        [
            "tokens per second against the faster of vLLM and llama.cpp, 0.5B, 1 to 16 clients",
            "at least 1×",
            f"at least {least:.2f}×",
            _met(least >= 1),
        ],
        ["time between the steps of 16 rows", "below 10 %", f"{between:.1%}".replace("%", " %"), _met(between < 0.1)],
    ]
    for name, words in (("governor-0.5b-4096", "long"), ("governor-0.5b", "short")):
        whole = of.read(name)
        run, dense = (whole["servers"][server] for server in ("governor, budgets and rows", "dense, overload"))
        over = run["tpot_p95_ms"] / whole["objective_ms"] - 1
        more = run["tokens_per_second"] / dense["tokens_per_second"] - 1
        rows.append(
            [f"overload after {words} contexts: 95th percentile of the time per token against the objective; tokens "
             "per second against dense", "at most 0 %; above 0 %", f"{100 * over:+.0f} %; {100 * more:+.0f} %",
             _met(over <= 0 < more)]
        )  # fmt: skip
    kept = [of.read("neighbours-0.5b")["solm"][count]["kept"] for count in ("1", "2")]
    rows.append(
        ["tokens per second kept beside one and two busy processes", "0.50, 0.30", f"{kept[0]:.2f}, {kept[1]:.2f}",
         _met(kept[0] > 0.5 and kept[1] > 0.3)]
    )  # fmt: skip
    return rows


def _mmlu() -> list[list[str]]:
    rows = []
    measured = {
        "0.5B, answers alone": LARGER_ANSWERS, "0.5B": LARGER, "1.5B, answers alone": LARGEST_ANSWERS, "1.5B": LARGEST
    }  # fmt: skip
    for size, names in measured.items():
        for point in (found["uniform"] for found in mmlu_points(names).values()):
            gain = point["differences"]["acc"]["value"] / point["scores"]["acc"]
            rows.append(
                [f"accuracy on MMLU relative to uniform settings, {size} at {point['budget']} of the time",
                 "at least +5 %, beyond the noise",
                 f"{100 * gain:+.1f} %, {point['questions']} questions",
                 _met(gain >= 0.05 and point["differences"]["acc"]["low"] > 0)]
            )  # fmt: skip
    return rows
