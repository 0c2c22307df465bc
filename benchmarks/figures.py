"""The documentation's figures, from the results in docs/results.

python benchmarks/figures.py          # writes docs/figures/*.svg
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent / "docs"
ARMS = (("allocated", "tab:blue"), ("tuned", "tab:orange"), ("best-of-500-estimated", "tab:green"))
ENGINES = {
    ("transformers", "bfloat16", "dense"): "stock transformers, bfloat16",
    ("llama.cpp", "Q8_0", "dense"): "llama.cpp Q8_0",
    ("cpu", "bfloat16", "dense"): "cpu bfloat16",
    ("cpu", "int8", "dense"): "cpu int8",
    ("cpu", "int4", "dense"): "cpu int4 (exact for this model)",
    ("cpu", "int8", "pages 0.2, mlp 0.6"): "cpu int8, pages 0.2 and MLP 0.6",
}


def against_baselines() -> plt.Figure:
    """Policy minus baseline, nats per token, with 95 % intervals, at every budget that was fixed beforehand."""
    points: dict[str, dict[str, dict[str, float]]] = {}
    for path in sorted((ROOT / "results/policies").glob("*.json")):
        for point in json.loads(path.read_text())["points"]:
            if point["difference"] is not None:
                points.setdefault(f"{path.stem} {point['budget']:g}", {})[point["arm"]] = point["difference"]
    names = list(reversed(points))
    figure, axes = plt.subplots(figsize=(7, 0.42 * len(points) + 1))
    for row, name in enumerate(names):
        for place, (arm, colour) in enumerate(ARMS):
            value, low, high = (points[name][arm][key] for key in ("value", "low", "high"))
            axes.errorbar(value, row + 0.22 * (1 - place), xerr=[[value - low], [high - value]], fmt="o", ms=4,
                          color=colour, capsize=2, label=arm if row == 0 else None)  # fmt: skip
    axes.axvline(0, color="gray", lw=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("policy minus baseline, nats per token (left: the policy is better)")
    axes.legend(fontsize=8, loc="lower left")
    return figure


def on_the_clock() -> plt.Figure:
    """Milliseconds of a decode step by context; of llama.cpp the faster of its two attentions."""
    points = json.loads((ROOT / "results/engine.json").read_text())["results"]["points"]
    figure, axes = plt.subplots(figsize=(7, 3.4))
    contexts = sorted({point["context"] for point in points})
    for (engine, precision, setting), label in ENGINES.items():
        times = [
            min(
                (
                    point["milliseconds"]["median"]
                    for point in points
                    if (point["context"], point["engine"], point["precision"]) == (context, engine, precision)
                    and point["kv_cache"] == "auto"
                    and point["setting"].removesuffix(", fused attention") == setting
                ),
                default=None,
            )
            for context in contexts
        ]
        if None not in times:
            axes.plot(contexts, times, marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(contexts, map(str, contexts))
    shown_ms = (2, 3, 5, 10, 20, 30, 50, 100)
    axes.set_yticks(shown_ms, map(str, shown_ms))
    axes.minorticks_off()
    axes.set_xlabel("tokens of context")
    axes.set_ylabel("ms per token, batch 1, 2 threads")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def learning() -> plt.Figure:
    """Policy minus allocated by minutes of one thread's training, with 95 % intervals."""
    points = json.loads((ROOT / "results/learning.json").read_text())["results"]["points"]
    shown = {
        "values": "counterfactual regression",
        "grpo": "GRPO with our priors",
        "grpo-paper": "GRPO as in the paper",
    }
    figure, axes = plt.subplots(figsize=(7, 3.2))
    for place, (method, label) in enumerate(shown.items()):
        mine = [point for point in points if point["method"] == method]
        values = [point["difference"]["value"] for point in mine]
        away = [
            [abs(point["difference"][end] - point["difference"]["value"]) for point in mine] for end in ("low", "high")
        ]
        minutes = [point["minutes"] * 1.03 ** (place - 1) for point in mine]
        axes.errorbar(minutes, values, yerr=away, marker="o", capsize=2, label=label)
    axes.axhline(0, color="gray", lw=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks([3, 6, 12], ["3", "6", "12"])
    axes.set_xlabel("minutes of training on one thread")
    axes.set_ylabel("policy minus allocated, nats per token")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def main() -> None:
    out = ROOT / "figures"
    out.mkdir(exist_ok=True)
    plt.rcParams["svg.hashsalt"] = "solm"
    figures = {"baselines": against_baselines(), "decode": on_the_clock(), "learning": learning()}
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    main()
