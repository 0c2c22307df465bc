"""Figures as files: what all of them share, and the violins of random search."""

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np

from solm.core.errors import SolmError
from solm.evaluation.result import EvaluationResult

Kind = Literal["png", "svg"]
_FEWEST = 5
"""Trials below which a density says less than the trials themselves."""


def kind_of(path: Path | None) -> Kind:
    """The format that a file's name asks for; raises `SolmError` for another than .png or .svg."""
    if path is None or path.suffix == ".png":
        return "png"
    if path.suffix == ".svg":
        return "svg"
    raise SolmError(f"--plot {path}: a picture is .png or .svg")


def blank(width: float = 6.0, height: float = 4.0, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """A figure and its axes, width and height in inches; small, so that words stay readable on a phone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(rows, columns, figsize=(width, height), dpi=150)


def picture(figure: Any, kind: Kind = "png") -> bytes:
    """The figure as a file's content."""
    from matplotlib import pyplot as plt

    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    plt.close(figure)
    return buffer.getvalue()


def violins(result: EvaluationResult, kind: Kind = "png") -> bytes:
    """Whole-set perplexities of all random trials by budget, with policy and allocated (or uniform) among them."""
    figure, axes = blank()
    for place, trials in enumerate(result.trials):
        values = np.exp(trials.nats)
        if len(values) >= _FEWEST and np.ptp(values) > 0:
            parts: Any = axes.violinplot(values, [place], widths=0.7, showextrema=True)
            for body in parts["bodies"]:
                body.set_facecolor("#868e96")
            for name in ("cbars", "cmins", "cmaxes"):
                parts[name].set_color("#868e96")
        else:
            axes.plot([place] * len(values), values, "o", color="#868e96", alpha=0.6)
        found = ((result.arm("policy", trials.budget), "#0b7285"), (result.static(trials.budget), "#e8590c"))
        for point, colour in found:
            if point is not None:
                label = point.arm if place == 0 else None
                axes.plot([place - 0.4, place + 0.4], [point.perplexity] * 2, color=colour, lw=2, label=label)
    axes.set_xticks(range(len(result.trials)), [f"{trials.budget:g}" for trials in result.trials])
    axes.set_xlabel(result.currency)
    axes.set_ylabel(f"perplexity of {max(len(trials.nats) for trials in result.trials)} random trials")
    axes.grid(alpha=0.25, axis="y")
    axes.legend(frameon=False)
    return picture(figure, kind)
