"""The table of thresholds and of exact numbers of channels on the clock."""

from cells import markdown, table
from published import measured, read
from published_speed import LARGER


@table
def thresholds_clock() -> str:
    """By model and share: milliseconds of a step under thresholds and under exact numbers of channels."""
    rows = []
    for size, model in LARGER.items():
        name = f"thresholds-{size.lower()}"
        if not measured(name):
            continue
        arms = read(name)["arms"]
        for level in dict.fromkeys(arm["level"] for arm in arms.values() if arm["level"] < 1):
            dense, first, second = (arms[arm] for arm in ("dense", f"thresholds {level:g}", f"exact {level:g}"))
            by = f"{first['ms']:.1f} / {second['ms']:.1f}"
            rows.append(
                [model, f"{level:g}", f"{dense['ms']:.1f}", by, f"{first['share']:.3f} / {second['share']:.3f}"]
            )
    head = ("Model", "Share asked for", "dense step, ms", "thresholds / exact, ms", "share kept")
    return markdown(head, rows)
