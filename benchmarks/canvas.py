"""Shapes collected as SVG that is readable on light and dark pages."""

from collections.abc import Callable, Sequence
from html import escape
from math import log2

STYLE = """<style>
text { font: 14px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328 }
.quiet { fill: #59636e } .title { font-weight: 600 } .grid { stroke: #d1d9e0 } .axis { stroke: #8b949e }
@media (prefers-color-scheme: dark) { text { fill: #f0f6fc } .quiet { fill: #9198a1 } .grid { stroke: #3d444d } }
</style>"""
TEAL, BLUE, ORANGE, GREY, PINK = "#0f9d8a", "#4f8ff7", "#e07b1a", "#8b949e", "#d6509a"
Point = tuple[float, float]
ARMS = (
    ("solm, policy", TEAL, False), ("solm, every layer alike", ORANGE, True), ("solm, dense", BLUE, False),
    ("llama.cpp, dense", PINK, False),
)  # fmt: skip
"""What figures of budgets beside llama.cpp show: words, colour, whether dots are hollow."""


class Canvas:
    """Shapes in pixels, collected as SVG."""

    def __init__(self, width: int, height: int, label: str):
        size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(label)}">',
            STYLE,
        ]

    def line(self, start: Point, end: Point, kind: str) -> None:
        self.parts.append(
            f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" class="{kind}"/>'
        )

    def curve(self, points: Sequence[Point], colour: str, dashed: bool = False) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')

    def dot(self, at: Point, colour: str, hollow: bool = False) -> None:
        paint = f'fill="none" stroke="{colour}" stroke-width="2"' if hollow else f'fill="{colour}"'
        self.parts.append(f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="5" {paint}/>')

    def text(self, at: Point, words: str, kind: str = "", anchor: str = "start", turned: int = 0) -> None:
        turn = f' transform="rotate({turned} {at[0]:.1f} {at[1]:.1f})"' if turned else ""
        self.parts.append(
            f'<text x="{at[0]:.1f}" y="{at[1]:.1f}" class="{kind}" text-anchor="{anchor}"{turn}>{escape(words)}</text>'
        )

    def legend(self, at: Point, entries: Sequence[tuple[str, str, bool]]) -> None:
        """Dots with words side by side, from `at` on: words, colour, whether the dot is hollow."""
        x, y = at
        for words, colour, hollow in entries:
            self.dot((x, y), colour, hollow)
            self.text((x + 12, y + 5), words)
            x += 40 + 7.5 * len(words)

    def svg(self) -> str:
        return "\n".join([*self.parts, "</svg>"]) + "\n"


def scale(low: float, high: float, first: float, last: float, log: bool = False) -> Callable[[float], float]:
    """From values in [low, high] to pixels from `first` to `last`."""
    change = log2 if log else float
    return lambda value: first + (change(value) - change(low)) / (change(high) - change(low)) * (last - first)
