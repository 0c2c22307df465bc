"""How tables are registered and how their cells are written."""

from collections.abc import Callable, Iterable, Sequence
from math import exp, sqrt

from published import Difference

TABLES: dict[str, Callable[[], str]] = {}
"""Every table by its name between the markers."""
NONE = "—"


def table(build: Callable[[], str]) -> Callable[[], str]:
    """Register a function whose name, with hyphens, is the table's."""
    TABLES[build.__name__.replace("_", "-")] = build
    return build


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A table whose first `words` columns are text and whose others are numbers, aligned to the right."""
    lines = [head, ["---"] * words + ["---:"] * (len(head) - words), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def change(before: float, after: float, scaled: bool = False) -> str:
    """From one time to another; scaled: the first one was not timed in the run of the second."""
    arrow = "\u00a0→\u00a0"  # a narrow cell may break before the bracket only
    return f"{'≈' if scaled else ''}{before:.1f}{arrow}{after:.1f} ({before / after:.2f}×)"


def perplexity(nats: float) -> str:
    """A loss in nats per token as a change of perplexity in per cent."""
    percent = 100 * (exp(nats) - 1)
    return f"{percent:+.0f} %" if abs(percent) >= 10 else f"{percent:+.1f} %"


def signed(nats: float, digits: int = 3) -> str:
    return f"{nats:+.{digits}f}"


def interval(found: Difference, digits: int = 3, scale: float = 1.0, more_is_better: bool = False) -> str:
    """A difference with its interval; bold where it is better than zero beyond the noise."""
    value, low, high = (f"{scale * number:+.{digits}f}" for number in (found.value, found.low, found.high))
    better = found.low > 0 if more_is_better else found.high < 0
    return f"**{value}** [{low}, {high}]" if better else f"{value} [{low}, {high}]"


def rate(part: float, count: int) -> str:
    """A share of `count` independent trials in per cent with its 95 % interval, Wilson's."""
    z = 1.96
    middle = (part + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * sqrt(part * (1 - part) / count + z * z / (4 * count * count))
    return f"{100 * part:.1f} [{100 * max(middle - half, 0):.1f}, {100 * min(middle + half, 1):.1f}]"
