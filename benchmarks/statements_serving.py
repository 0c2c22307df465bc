"""Statements about prompts, servers and batches: beside others, under budgets, under load, and under a grammar."""

from typing import Any

import published as of
import published_speed as timed
from statements import says, tied


@says("docs/results-serving.md", "The lower budget makes none")
def budgets_do_not_help_a_small_model() -> bool:
    dense, budgeted = (
        of.servers()[of.SERVERS[f"solm, cpu backend, int8, {how}"]] for how in ("dense", "policy at net keep 0.6")
    )
    return all(budgeted[n]["tokens_per_second"] < 1.02 * dense[n]["tokens_per_second"] for n in ("1", "4"))


def at_servers(server: str) -> dict[tuple[str, str], float]:
    """Tokens per second of one server, by result and number of clients."""
    names = ("serve-0.5b", "serve-0.5b-replies-256", "serve-0.5b-1024")
    return {
        (name, clients): run["tokens_per_second"]
        for name in names
        for clients, run in of.read(name)["servers"][server].items()
    }


@says("README.md", "gives 240 tokens per second on the 0.5B, vLLM in bfloat16 195, llama.cpp 50.")
@says("docs/results-serving.md", "The smallest difference is 6 % to vLLM with 16 clients and prompts of 1,024")
@says(
    "docs/results-serving.md", "With 16 clients and prompts of 128 it is 23 %, and 38 % where replies have 256 tokens."
)
def beside_other_servers() -> bool:
    ours, vllm, llama = (at_servers(server) for server in ("solm", "vLLM, bfloat16", "llama.cpp, xllamacpp"))
    names = ("serve-0.5b-1024", "serve-0.5b", "serve-0.5b-replies-256")
    of_many = [round(ours[name, "16"] / vllm[name, "16"], 2) for name in names]
    least = min(ours[key] / max(vllm[key], llama[key]) for key in ours)
    sixteen = [round(rates["serve-0.5b", "16"]) for rates in (ours, vllm, llama)]
    return round(least, 2) == of_many[0] and of_many == [1.06, 1.23, 1.38] and sixteen == [240, 195, 50]


@says("docs/results-serving.md", "On the 135M (table below) it is 2 % at least.")
@says(
    "docs/results-serving.md",
    "vLLM has the shorter median time per token, 52.6 ms against 59.2, and the longer first token.",
)
def where_others_are_near() -> bool:
    ratios = []
    for name in ("serve-135m", "serve-135m-1024"):
        ours, *others = (runs for server, runs in of.read(name)["servers"].items())
        ratios += [ours[n]["tokens_per_second"] / run[n]["tokens_per_second"] for run in others for n in ours]
    ours, vllm = (of.read("serve-0.5b-1024")["servers"][name]["4"] for name in ("solm", "vLLM, bfloat16"))
    times = [round(run["tpot_p50_ms"], 1) for run in (vllm, ours)]
    return round(min(ratios), 2) == 1.02 and times == [52.6, 59.2] and vllm["first_p50_ms"] > ours["first_p50_ms"]


@says(
    "docs/results-serving.md",
    "with 16 streaming rows on the 0.5B, 5.9 % of the time is neither a decode step nor the reading",
)
@says(
    "docs/results-serving.md",
    "1.2 % choosing tokens, 0.7 % their text, 1.6 % events for clients, 0.6 % budgets, costs and",
)
@says("docs/results-serving.md", "metrics, and 1.9 % the loop itself")
def little_lies_between_steps() -> bool:
    found = of.read("between-steps-0.5b")["median"]
    parts = found["parts"]
    small = sum(parts[name] for name in ("budgets", "cost", "metrics"))
    shares = [parts["sampling"], parts["text"], parts["events"], small, parts["the rest"], found["between"]]
    return [round(100 * share, 1) for share in shares] == [1.2, 0.7, 1.6, 0.6, 1.9, 5.9]


@says(
    "docs/results-serving.md",
    "the dense server gave 61, 100 and 129 tokens per second with 1, 4 and 16 clients, and 214",
)
def an_older_processor() -> bool:
    runs = [of.read(f"{name}-zen4")["servers"]["solm"] for name in ("serve-0.5b", "serve-0.5b-replies-256")]
    rates = [run[clients]["tokens_per_second"] for run in runs for clients in run]
    return [int(rate) for rate in rates] == [61, 99, 129, 214] and round(rates[1]) == 100


@says(
    "docs/results-serving.md",
    "brings 17 % more tokens per second with 1 client after prompts of 128, and 2 % more after",
)
@says("docs/results-serving.md", "With 4 or 16 clients it changes them by less than 3 %")
@says("docs/results.md", "By a budget on the 0.5B with one client, by 2 to 17 %. With 16 clients not after short")
def budgets_at_servers() -> bool:
    dense, budgeted = at_servers("solm"), at_servers("solm at loss=0.05")
    ratios = {key: round(budgeted[key] / dense[key], 2) for key in dense}
    alone = [ratio for (_, clients), ratio in ratios.items() if clients == "1"]
    more = [ratio for (_, clients), ratio in ratios.items() if clients != "1"]
    return alone == [1.17, 1.02] and all(0.97 <= ratio <= 1.0 for ratio in more)


def batch_points() -> dict[tuple[int, int, str], dict[str, Any]]:
    """Of steps of several rows, by context, rows and setting."""
    return {(p["context"], p["rows"], p["setting"]): p for p in of.read("batch-0.5b")["points"]}


@says("docs/serving.md", "After 150 tokens nothing makes a step of 16 rows more than 1.07 times as fast.")
def short_contexts_in_a_batch() -> bool:
    ratios = [p["ratio"] for (context, rows, _), p in batch_points().items() if (context, rows) == (150, 16)]
    return round(max(ratios), 2) == 1.07


@says(
    "docs/serving.md",
    "two fifths of the pages make steps of 4 rows 1.23 and of 16 rows 1.32 times as fast, and cannot be told from",
)
@says("docs/serving.md", "A fifth of the pages makes 4 rows 1.35 and 16 rows 1.55 times as fast, for 0.037 nats.")
@says("docs/limits.md", "After 4,096 tokens two fifths of the pages make a step of 16 rows 1.32 times as fast")
@says("docs/results-serving.md", "lose 0.007 nats per token [-0.006, +0.021] (16 texts)")
@says("docs/serving.md", "which loses 0.037 nats per token [+0.009, +0.064] (in the table above)")
def long_contexts_in_a_batch() -> bool:
    found = batch_points()
    settings = [(rows, f"pages {share}") for share in (0.4, 0.2) for rows in (4, 16)]
    four, sixteen, fifth_of_four, fifth = (found[4096, *setting] for setting in settings)
    alike = tied(of.Difference.of(four["loss"])) and tied(of.Difference.of(sixteen["loss"]))
    ratios = [round(point["ratio"], 2) for point in (four, sixteen, fifth_of_four, fifth)]
    losses = [round(number, 3) for point in (sixteen, fifth) for number in list(point["loss"].values())[:3]]
    return alike and ratios == [1.23, 1.32, 1.35, 1.55] and losses == [0.007, -0.006, 0.021, 0.037, 0.009, 0.064]


@says(
    "docs/results-serving.md",
    "two fifths of the pages bring 3 % more tokens per second with 1 client, 4 % with 4 and 23 % with",
)
@says("docs/results-serving.md", "16, whose time per token falls from 61.6 to 46.7 ms")
@says("docs/results.md", "but by 23 % after 4,096 tokens")
@says("README.md", "raises the tokens per second of 16 clients on the 0.5B by 23 %")
def pages_at_servers() -> bool:
    dense, fewer = (of.read("serve-0.5b-shared-4096")["servers"][name] for name in ("solm", "solm at attention=0.4"))
    more = [round(100 * (fewer[n]["tokens_per_second"] / dense[n]["tokens_per_second"] - 1)) for n in ("1", "4", "16")]
    times = [round(run["16"]["tpot_p50_ms"], 1) for run in (dense, fewer)]
    return more == [3, 4, 23] and times == [61.6, 46.7]


@says("docs/results-serving.md", "Letting prompts wait keeps the objective")
@says("docs/history.md", "makes a busy server slower")
def rows_keep_the_objective() -> bool:
    objective, found = of.governed()
    slower = found["governor, budgets"]["tpot_p50_ms"] > found["dense, overload"]["tpot_p50_ms"]
    return slower and found["governor, rows"]["tpot_p95_ms"] < objective < found["governor, budgets"]["tpot_p95_ms"]


@says(
    "docs/serving.md",
    "With lower budgets and prompts that wait, the objective is met at the 95th percentile, and there are 8 % more",
)
@says("docs/serving.md", "First tokens come later.")
@says("docs/serving.md", "Lower budgets alone bring 22 % more tokens per second and miss the objective by 29 %.")
@says("docs/serving.md", "Prompts that wait without lower budgets meet it and cost 27 % of the tokens per second.")
@says("docs/serving.md", "Lower budgets make replies less likely; prompts that wait do not.")
def the_governor_after_long_contexts() -> bool:
    whole = of.read("governor-0.5b-4096")
    found, objective = whole["servers"], whole["objective_ms"]
    dense = found["dense, overload"]
    kinds = [found[f"governor, {kind}"] for kind in ("budgets", "budgets and rows", "rows")]
    more = [round(100 * (run["tokens_per_second"] / dense["tokens_per_second"] - 1)) for run in kinds]
    missed = [run["tpot_p95_ms"] / objective - 1 for run in kinds]
    less = [of.Difference.of(run["less_likely"]) for run in kinds]
    likely = less[0].low > 0 and less[1].low > 0 and tied(less[2])
    later = kinds[1]["first_p50_ms"] > 2 * dense["first_p50_ms"]
    return more == [22, 8, -27] and round(100 * missed[0]) == 29 and max(missed[1:]) <= 0 and likely and later


@says(
    "docs/serving.md",
    "With prompts of 256 tokens lower bits change tokens per second and time per token by less than a tenth.",
)
@says("docs/serving.md", "With prompts that wait the objective is met. Tokens per second then fall by 31 %")
@says("docs/serving.md", "and the median first token comes 12 times as late.")
@says("docs/serving.md", "who without overload get 22 % fewer tokens per second than 8.")
def the_governor_after_short_contexts() -> bool:
    whole = of.read("governor-0.5b")
    found, calm = whole["servers"], whole["servers"]["dense, no overload"]
    dense, budgets, both = (found[f] for f in ("dense, overload", "governor, budgets", "governor, budgets and rows"))
    alike = all(abs(budgets[what] / dense[what] - 1) < 0.1 for what in ("tokens_per_second", "tpot_p50_ms"))
    met, later = both["tpot_p95_ms"] <= whole["objective_ms"], both["first_p50_ms"] / dense["first_p50_ms"]
    less = [round(100 * (1 - run["tokens_per_second"] / dense["tokens_per_second"])) for run in (both, calm)]
    return alike and less == [31, 22] and met and round(later) == 12


@says("docs/load.md", "As many replies per second are complete as without it, to 2 %.")
@says("docs/load.md", "so that 1.5 to 3.9 times as many are good.")
def the_governor_under_too_much_load() -> bool:
    arms = of.read("shedding-0.5b")["arms"]
    pairs = [(arms["governor"][rate], arms["no governor"][rate]) for rate in ("1", "2", "4")]
    served, good = (
        [one[what] / other[what] for one, other in pairs] for what in ("served_per_second", "goodput_per_second")
    )
    alike = all(abs(ratio - 1) < 0.02 for ratio in served) and all(one["net_keep"] > 0.95 for one, _ in pairs)
    return alike and (round(min(good), 1), round(max(good), 1)) == (1.5, 3.9)


@says("docs/results.md", "594 tokens per second against 706 for prompts of 8,192 tokens, 380 against 517 for 16,384.")
def prompts_beside_openvino() -> bool:
    places = [(engine, context) for context in (8192, 16384) for engine in ("solm", "openvino, Q4_0")]
    return [round(timed.larger_prompt("0.5B", *place)) for place in places] == [594, 706, 380, 517]
