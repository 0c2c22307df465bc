"""Figures: the numbers that a drawing shows, kept beside it as JSON, and the drawing."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from results import result

Lines = dict[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class Figure:
    """Lines over one axis, from one run. page: the generated page that shows it."""

    name: str
    page: str
    title: str
    caption: str
    axes: tuple[str, str]
    lines: Callable[[], Lines]

    def data(self) -> str:
        """The numbers, as the JSON beside the drawing."""
        return json.dumps({"title": self.title, "axes": self.axes, "lines": self.lines()}, indent=1) + "\n"

    def draw(self, path: Path) -> None:
        """Write the drawing, an SVG whose bytes depend on the numbers and on the version of matplotlib alone."""
        import matplotlib

        matplotlib.use("svg")
        matplotlib.rcParams["svg.hashsalt"] = self.name
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(7, 4))
        for label, points in self.lines().items():
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks([x for x, _ in next(iter(self.lines().values()))])
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        axes.set_ylim(bottom=0)
        axes.set(xlabel=self.axes[0], ylabel=self.axes[1])
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
        pyplot.close(figure)


def _steps() -> Lines:
    """Milliseconds of a step of the 0.5B by context, of every engine of one run."""
    found = result("engine-0.5b")["results"]
    lines: Lines = {
        f"solm, {setting}": [
            (int(c), round(at["step_ms"][setting]["1"]["median"], 3)) for c, at in found["contexts"].items()
        ]
        for setting in ("dense", "pages 0.2, mlp 0.6")
    }
    for name in ("llama.cpp", "openvino, Q4_0"):
        peer = found["peers"][name]["contexts"]
        lines[name] = [(int(c), round(at["step_ms"]["dense"]["1"]["median"], 3)) for c, at in peer.items()]
    return lines


FIGURES = {
    "steps-0.5b": Figure(
        "steps-0.5b", "speed", "A decode step of Qwen2.5-Coder-0.5B",
        "One run on 2 threads of an AMD EPYC (Zen 5), medians. solm and llama.cpp read the same Q4_K_M file, OpenVINO "
        "one in Q4_0.",
        ("tokens before", "milliseconds per step"), _steps,
    ),
}  # fmt: skip
