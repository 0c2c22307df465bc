"""The model cards of the policies that ship: how they were trained, what they were measured to do, what they cannot.

python benchmarks/cards.py          # writes src/solm/policies/builtin/*/README.md from docs/results
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from solm.core.files import write_text
from solm.policies.artifact import BUILTIN, CARD, TrainedPolicy, model_card
from tables_fits import fitted_policy

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs/results"
FOLDER = ROOT / "src/solm/policies/builtin"
ARMS = ("allocated", "uniform", "tuned", "best-of-500-estimated")

DEFAULT_LIMITS = """- Trained on English text, documentation and code, teacher-forced, after 512 tokens.
- In contexts of up to 96 tokens attention reads everything.
- Levels below attention 0.1, MLP 0.4 and 4 bits are refused. Activation bits save no time.
- In runs of 16 tokens it wins at low budgets alone, and above may lose up to 0.02 nats to `allocated`.
- Its allocation was found after 512 and 4,096 tokens. At 0.1 of the pages of 8,064, `uniform` loses 0.067 nats less.
- The torch backend carries its actions out by masks: quality changes, not the clock."""

STEP_TIMES = """\
- Its step times were measured on a processor with AVX-512. On another one `solm bench --policy ... --out FILE` and
  `--timings FILE` make budgets in time true; solm warns where they may not be."""

FITTED_LIMITS = f"""- For the cpu backend.
- Fitted on English text and code, teacher-forced, after 512 tokens. Other contexts than those in the table of budgets
  were not compared.
{STEP_TIMES}
- Levels below attention 0.1 and MLP 0.35 are refused."""

CPU_LIMITS = f"""- For the cpu backend, whose sparsity it has; the axes are pages and MLP channels.
- Trained on English text, documentation and code, teacher-forced, after 1,024 tokens.
- At equal milliseconds it beats constants with every layer alike and ties with constants under its own allocation.
- Levels below attention 0.1 and MLP 0.5 are refused.
- The command above is of an earlier version, whose options had other names. The step times and the curve were measured
  later, by `solm bench` and `solm eval`. `solm fit builtin:smollm2-135m --data ... --minutes 10` makes a policy and its
  curve in one command.
{STEP_TIMES}"""


def read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def interval(found: dict[str, float]) -> str:
    text = f"{found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
    return f"**{text}**" if found["high"] < 0 else text


def turned(found: dict[str, float]) -> dict[str, float]:
    """The difference the other way around."""
    return {"value": -found["value"], "low": -found["high"], "high": -found["low"]}


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def on_the_grids() -> list[str]:
    rows, texts = [], set()
    for path in sorted((RESULTS / "policies").glob("*.json")):
        found = json.loads(path.read_text())
        points, how = found["points"], found["settings"]
        texts.add(f"{how['texts']} held-out texts x {how['length']} tokens after {how['context']}")
        dense = next(point["nats"] for point in points if point["arm"] == "dense")
        for budget in sorted({point["budget"] for point in points if point["arm"] == "policy"}):
            arms = {point["arm"]: point for point in points if point["budget"] == budget}
            against = [interval(arms[arm]["difference"]) for arm in ARMS]
            rows.append([path.stem, f"{budget:g}", f"{arms['policy']['nats'] - dense:+.3f}", *against])
    learning = read("learning.json")
    settings = learning["settings"]
    curve = [
        [f"{point['minutes']:.0f}", f"{point['training']['token_steps']:,}", interval(point["difference"])]
        for point in learning["results"]["points"]
        if point["method"] == "values" and point["space"] == "joint-27"
    ]
    return [
        f"Nats per token above dense and policy minus baseline, {' and '.join(sorted(texts))}, with 95 % "
        "intervals; bold where the policy wins. Baselines spend what the policy spent; `uniform` does so without "
        "the allocation.",
        "",
        *table(["space", "net keep", "policy", "− allocated", "− uniform", "− tuned", "− best of 500"], rows),
        "",
        f"How training gets there: policy minus allocated on joint-27 at {settings['budgets']['joint-27']:g} "
        f"({settings['texts']} texts) after minutes of one thread.",
        "",
        *table(["minutes", "token-steps", "policy − allocated"], curve),
    ]  # fmt: skip


def on_the_clock() -> list[str]:
    found = read("dial-1024.json")
    measured = found["results"]["contexts"]["1024"]
    rows = [
        [
            f"{point['pages']:g}, {point['mlp']:g}",
            f"{point['policy']['milliseconds']:.2f}",
            f"{point['policy']['loss']['value']:+.3f}",
            interval(point["policy_minus_allocated"]),
            interval(turned(point["policy_in_time_of_uniform"]["this_minus_it"])),
        ]
        for point in measured["settings"]
    ]
    processor = found["environment"]["machine"]["processor"]
    return [
        f"4-bit weights with an int8 KV cache after 1,024 tokens, {measured['texts']} held-out texts x 128 tokens: "
        f"milliseconds per token on two threads ({processor}; dense {measured['dense_milliseconds']:.2f}), nats per "
        "token above dense, policy minus the constant of the same allocation and budget; last, the policy's best "
        "setting in no more time than the uniform constant of that row takes, minus that constant. 95 % intervals, "
        "bold where the policy wins.",
        "",
        *table(["pages, MLP", "ms", "policy", "− constant", "in its time − uniform"], rows),
    ]  # fmt: skip


def on_larger_models(size: str) -> list[str]:
    return [
        "At equal milliseconds by the step times of the budgets above, on text that the fit did not use: nats per "
        "token above dense, and policy minus baseline, with 95 % intervals; bold where the policy wins. *uniform* and "
        "*thresholds* treat every layer alike, *allocated* and *constant* follow the policy's allocation. *thresholds* "
        "and *allocated* keep channels by the policy's thresholds, *uniform* and *constant* exact numbers of them.",
        "",
        fitted_policy(size).rstrip(),
    ]  # fmt: skip


POLICIES: dict[str, tuple[Callable[[], list[str]], str]] = {
    "qwen2.5-coder-0.5b-instruct": (
        lambda: on_larger_models("0.5b-1024"),
        FITTED_LIMITS,
    ),
    "qwen2.5-coder-1.5b-instruct": (
        lambda: on_larger_models("1.5b-1024"),
        FITTED_LIMITS,
    ),
    "smollm2-135m": (on_the_grids, DEFAULT_LIMITS),
    "smollm2-135m-cpu": (on_the_clock, CPU_LIMITS),
}


def card(name: str) -> str:
    """The card of the policy builtin:`name`."""
    results, limits = POLICIES[name]
    sections = ["## Results", "", *results(), "", "## Limits", "", limits, ""]
    trained = TrainedPolicy.from_pretrained(BUILTIN + name)
    return model_card(trained.config, trained.curve) + "\n" + "\n".join(sections)


def main() -> None:
    for name in POLICIES:
        write_text(FOLDER / name / CARD, card(name))


if __name__ == "__main__":
    main()
