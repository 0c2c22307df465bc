"""The figure of a larger model: milliseconds per token against loss, beside llama.cpp on the same file."""

from typing import Any

import published as of
import published_speed as timed
from canvas import ARMS, BLUE, ORANGE, PINK, TEAL, Canvas, scale

PANELS = {1024: "fitted-0.5b-1024", 8192: "fitted-0.5b-8192-zen5"}
"""By tokens before the step the comparison of the policy."""
_MOST = 0.25  # nats


def larger() -> str:
    """A policy's budgets and the same spent uniformly, after few and after many tokens."""
    canvas = Canvas(880, 470, "Milliseconds per token against loss on Qwen2.5-Coder-0.5B, with llama.cpp")
    top, zero = 60.0, 320.0
    high = scale(0, _MOST, zero, top)
    # An octave is as wide in both panels.
    panels = {1024: (6, 36, 90.0, 416.0), 8192: (7, 56, 466.0, 845.0)}
    for context, name in PANELS.items():
        least, most, left, right = panels[context]
        across = scale(least, most, left, right, log=True)
        canvas.text((left, 30), f"after {context:,} tokens", "title")
        for step in range(6):
            loss = _MOST * step / 5
            canvas.line((left, high(loss)), (right, high(loss)), "grid")
            if context == min(PANELS):
                canvas.text((left - 8, high(loss) + 4), f"+{loss:.2f}" if step else "dense", "quiet", "end")
        for tick in (tick for tick in (8, 16, 32) if tick <= most):
            canvas.line((across(tick), zero), (across(tick), zero + 5), "axis")
            canvas.text((across(tick), zero + 20), f"{tick}", "quiet", "middle")
        canvas.text(((left + right) / 2, zero + 42), "milliseconds per token (left is faster)", "quiet", "middle")
        points = of.read(name)["points"]
        dense = points[0]["step_ms"]
        for arm, colour, hollow in (("uniform", ORANGE, True), ("policy", TEAL, False)):
            curve = [(across(dense), zero)]
            for time, loss in sorted(_losses(points, arm), reverse=True):
                if loss <= _MOST:
                    curve.append((across(time), high(max(0.0, loss))))
            canvas.curve(curve, colour)
            for point in curve[1:]:
                canvas.dot(point, colour, hollow)
        theirs = timed.larger_step("0.5B", "llama.cpp", context)  # with the faster of its two attentions
        for words, time, colour, lift in (
            (f"solm: {dense:.1f}", dense, BLUE, 36), (f"llama.cpp: {theirs:.1f}", theirs, PINK, 62),
        ):  # fmt: skip
            canvas.line((across(time), zero), (across(time), zero - lift), "grid")
            canvas.dot((across(time), zero), colour)
            aside, anchor = (-4, "end") if 2 * time > most else (4, "start")
            canvas.text((across(time) + aside, zero - lift + 10), words, anchor=anchor)
    canvas.text((26, (top + zero) / 2), "nats per token above dense", "quiet", "middle", -90)
    canvas.legend((90, zero + 75), ARMS)
    texts = {context: of.settings(name)["texts"] for context, name in PANELS.items()}
    for row, line in enumerate((
        f"Qwen2.5-Coder-0.5B, Q4_K_M file, 2 threads of an AMD EPYC (Zen 5); {texts[1024]} and {texts[8192]} held-out "
        "texts.",
        "Step times were measured beforehand. llama.cpp computes every logit; its times are from another run.",
    )):  # fmt: skip
        canvas.text((90, zero + 115 + 21 * row), line, "quiet")
    return canvas.svg()


def _losses(points: list[dict[str, Any]], arm: str) -> list[tuple[float, float]]:
    """Milliseconds and nats per token above dense of an arm, by budget."""
    dense = points[0]["nats"]
    return [(point["step_ms"], point["nats"] - dense) for point in points if point["arm"] == arm]
