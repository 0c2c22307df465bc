"""Tables and single numbers of pages that are written by hand."""

from collections.abc import Callable
from functools import partial

from results import NONE, interval, markdown, median, number, result

TABLES: dict[str, Callable[[], str]] = {}
VALUES: dict[str, Callable[[], str]] = {}
MODELS = {"Qwen2.5-Coder-0.5B": "engine-0.5b", "Qwen2.5-Coder-1.5B": "engine-1.5b"}
STARTS = (
    ("peak memory, GiB: first / later starts", "peak_gib", 2, ("first", "second")),
    (
        "start to first token, s: first / engine built / later",
        "start_seconds",
        1,
        ("first", "first, engine built", "second"),
    ),
)
LOSSES = {"Qwen2.5-Coder-0.5B": "settings-0.5b", "Qwen2.5-Coder-1.5B": "settings-1.5b"}


def larger() -> str:
    """Steps and what they lose, then prompts and starts, of the larger models beside llama.cpp, from one run each."""
    shown, rows = ("MLP 0.6", "pages 0.2, MLP 0.6"), []
    for model, name in MODELS.items():
        contexts = result(name)["results"]["contexts"]
        for context in (each for each in ("1024", "16384") if each in contexts):
            ours = {setting: by_rows["1"]["median"] for setting, by_rows in contexts[context]["step_ms"].items()}
            peer, dense = llama_cpp(name, context), ours["dense"]
            cells = [f"{peer:.1f}", *(f"{ms:.1f} ({peer / ms:.2f}×)" for ms in (ours["dense, every logit"], dense))]
            cells += [f"{ms:.1f} ({dense / ms:.2f}×)" for ms in (ours[setting.lower()] for setting in shown)]
            rows.append([model, f"step after {int(context):,}, ms", *cells])
        losses = {point["setting"]: interval(point["loss"]) for point in result(LOSSES[model])["results"]["points"]}
        rows.append([model, "loss after 1,024, nats per token", NONE, "0", "0", *(losses[each] for each in shown)])
    head = (
        "Q4_K_M file of",
        "",
        "llama.cpp",
        "solm, every logit",
        "solm, greedy",
        *(f"solm, {each}" for each in shown),
    )
    return f"{markdown(head, rows, words=2)}\n\n{starts()}"


def starts() -> str:
    """Prompts, memory and starts of the larger models beside llama.cpp."""
    rows = [["prompt of 1,024, tokens/s"], *([words] for words, *_ in STARTS)]
    for name in MODELS.values():
        found = result(name)["results"]
        engines = ([found["peers"][peer] for peer in ("llama.cpp", "llama.cpp fused")], [found])
        read = [max(each["contexts"]["1024"]["prefill_tokens_per_second"]["median"] for each in of) for of in engines]
        rows[0] += [f"{read[0]:,.0f}", f"{read[1]:,.0f} ({read[1] / read[0]:.2f}×)"]
        for row, (_, key, digits, kinds) in zip(rows[1:], STARTS, strict=True):
            row += [" / ".join(median(of[0][key].get(kind), digits) for kind in kinds) for of in engines]
    return markdown(("", *(f"{model}, {engine}" for model in MODELS for engine in ("llama.cpp", "solm"))), rows)


TABLES["larger"] = larger


def llama_cpp(name: str, context: str) -> float:
    """Milliseconds of a step of llama.cpp, with the faster of its attention implementations."""
    peers = result(name)["results"]["peers"]
    measured = (peers[peer]["contexts"].get(context) for peer in ("llama.cpp", "llama.cpp fused") if peer in peers)
    return min(at["step_ms"]["dense"]["1"]["median"] for at in measured if at and at["step_ms"])


def over_llama_cpp(name: str, context: str) -> str:
    """How many times as fast as llama.cpp a greedy dense step is."""
    ours = result(name)["results"]["contexts"][context]["step_ms"]["dense"]["1"]["median"]
    return number(llama_cpp(name, context) / ours, 1)


for model, contexts in (("0.5b", ("1024", "4096", "16384")), ("1.5b", ("1024",))):
    for at in contexts:
        VALUES[f"{model}-over-llama.cpp-{at}"] = partial(over_llama_cpp, f"engine-{model}", at)


def guess_gain(name: str, work: str) -> str:
    """How many times as fast dense replies of a kind of work are with guesses."""
    return number(result(name)["results"]["works"][work]["gain"]["value"], 2)


VALUES["guess-editing"] = partial(guess_gain, "guess-0.5b", "editing")
for kind in ("chat", "mathematics"):
    VALUES[f"draft-{kind}"] = partial(guess_gain, "guess-1.5b", kind)


def fitted(key: str) -> str:
    """Budget or loss of the 0.5B's policy at the lowest budget that loses less than 0.05 nats."""
    points = result("fitted-0.5b-1024")["points"]
    losses = [(p["budget"], p["difference"]["value"]) for p in points if p["arm"] == "dense" and p.get("difference")]
    return number(min(each for each in losses if each[1] < 0.05)[key == "loss"])


VALUES |= {f"fitted-{key}": partial(fitted, key) for key in ("budget", "loss")}
