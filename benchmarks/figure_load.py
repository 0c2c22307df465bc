"""The figure of a server's governor: tokens per second against time per token under twice the load."""

import published as of
from canvas import BLUE, GREY, ORANGE, PINK, TEAL, Canvas, scale

RUN = "governor-0.5b-4096"
_ARMS = (
    ("dense, no overload", GREY, "4 clients, dense", "start", -12),
    ("dense, overload", BLUE, "8 clients, dense", "middle", -12),
    ("governor, rows", ORANGE, "prompts wait", "end", 22), ("governor, budgets", PINK, "lower budgets", "middle", -12),
    ("governor, budgets and rows", TEAL, "lower budgets, and prompts wait", "middle", 22),
)  # fmt: skip
"""Runs, their colours and words; where the dot is in the words, and how far below it they are."""


def load() -> str:
    """The 95th percentile of the time per token against tokens per second, with what lower budgets cost."""
    whole = of.read(RUN)
    servers, objective = whole["servers"], whole["objective_ms"]
    left, right, top, zero = 80.0, 700.0, 40.0, 300.0
    most = 10 * (max(run["tpot_p95_ms"] for run in servers.values()) // 10 + 1)
    fastest = 50 * (max(run["tokens_per_second"] for run in servers.values()) // 50 + 1)
    across, high = scale(100, fastest, left, right), scale(0, most, zero, top)
    canvas = Canvas(800, 400, "Tokens per second against milliseconds per token of a server under load")
    for tick in range(0, int(most) + 1, 10):
        canvas.line((left, high(tick)), (right, high(tick)), "grid")
        canvas.text((left - 8, high(tick) + 4), f"{tick}", "quiet", "end")
    for tick in range(100, int(fastest) + 1, 50):
        canvas.line((across(tick), zero), (across(tick), zero + 5), "axis")
        canvas.text((across(tick), zero + 20), f"{tick}", "quiet", "middle")
    canvas.curve([(left, high(objective)), (right, high(objective))], GREY, dashed=True)
    canvas.text((left + 6, high(objective) - 6), f"objective: {objective:.1f} ms", "quiet")
    for name, colour, words, anchor, below in _ARMS:
        run = servers[name]
        at = across(run["tokens_per_second"]), high(run["tpot_p95_ms"])
        loss = run.get("less_likely")
        cost = f" ({loss['value']:+.2f} nats)" if loss and name != "governor, rows" else ""
        canvas.dot(at, colour)
        canvas.text((at[0], at[1] + below), words + cost, "", anchor)
    canvas.text(((left + right) / 2, zero + 42), "tokens per second (right is better)", "quiet", "middle")
    canvas.text((26, (top + zero) / 2), "ms per token, 95th percentile", "quiet", "middle", -90)
    for row, line in enumerate((
        "Qwen2.5-Coder-0.5B after 4,096 tokens, 2 threads of an AMD EPYC (Zen 5); nats: how much less",
        "likely the dense model finds a token of the replies than one of the dense server's.",
    )):  # fmt: skip
        canvas.text((left, zero + 75 + 20 * row), line, "quiet")
    return canvas.svg()
