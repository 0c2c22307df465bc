"""The figures, from the results. `tables.py` writes them."""

from collections.abc import Callable
from math import ceil, exp, floor, log2

import published_ladder
import published_speed as timed
from canvas import ARMS, BLUE, GREY, ORANGE, PINK, TEAL, Canvas, Point, scale
from figure_larger import larger
from figure_load import RUN, load
from published import measured
from published_speed import BEST


def frontier(context: int, arm: str, most: float) -> list[Point]:
    """Milliseconds and per cent of perplexity of the settings that no other one beats in both; the fastest first."""
    found: list[Point] = [(timed.dial_dense(context), 0.0)]
    for setting in timed.dial(context):
        found.append((setting.milliseconds[arm], max(0.0, 100 * (exp(setting.loss[arm].value) - 1))))
    best = [point for point in found if not any(o != point and o[0] <= point[0] and o[1] <= point[1] for o in found)]
    return sorted(point for point in best if point[1] <= most)


def quality() -> str:
    """Milliseconds per token against perplexity: peers and the dial after 1,024 tokens, the dial after 8,064."""
    canvas = Canvas(880, 470, "Milliseconds per token against perplexity, with peers")
    top, zero, most = 60.0, 320.0, 30.0
    high = scale(0, most, zero, top)
    # An octave is as wide in both panels.
    panels = {1024: (scale(2, 32, 90, 490, log=True), 32), 8064: (scale(2, 16, 545, 845, log=True), 16)}
    for context, (across, slowest) in panels.items():
        left, right = across(2), across(slowest)
        canvas.text((left, 30), f"after {context:,} tokens", "title")
        for percent in range(0, int(most) + 1, 10):
            canvas.line((left, high(percent)), (right, high(percent)), "grid")
            if context == 1024:
                words = f"+{percent} %" if percent else "dense"
                canvas.text((left - 8, high(percent) + 4), words, "quiet", "end")
        for tick in (tick for tick in (2, 4, 8, 16, 32) if tick <= slowest):
            canvas.line((across(tick), zero), (across(tick), zero + 5), "axis")
            canvas.text((across(tick), zero + 20), f"{tick}", "quiet", "middle")
        canvas.text(((left + right) / 2, zero + 42), "milliseconds per token (left is faster)", "quiet", "middle")
        for arm, colour, hollow in (("uniform", ORANGE, True), ("policy", TEAL, False)):
            points = [(across(time), high(percent)) for time, percent in frontier(context, arm, most)]
            canvas.curve(points, colour)
            for point in points:
                canvas.dot(point, colour, hollow)
    for context, words, time, colour, lift in (
        (1024, "solm 4-bit, int8 KV cache", timed.dial_dense(1024), BLUE, 132),
        (1024, "solm int8", timed.step("int8", "dense", 1024), BLUE, 104),
        (1024, "llama.cpp Q4_1", timed.llama_cpp_step("Q4_1", 1024), PINK, 70),
        (1024, "llama.cpp Q8_0", timed.llama_cpp_step("Q8_0", 1024), PINK, 40),
        (8064, "solm, dense", timed.dial_dense(8064), BLUE, 28),
    ):
        place = panels[context][0](time)
        canvas.line((place, zero), (place, zero - lift), "grid")
        canvas.dot((place, zero), colour)
        canvas.text((place + 4, zero - lift + 10), f"{words}: {time:.1f}")
    canvas.text((490, zero - 6), f"transformers: {timed.transformers_step(1024):.1f} →", "quiet", "end")
    canvas.text((26, (top + zero) / 2), "perplexity above dense", "quiet", "middle", -90)
    canvas.legend((90, zero + 75), ARMS)
    texts = {context: timed.dial_texts(context) for context in timed.DIAL_FILES}
    for row, words in enumerate((
        "SmolLM2-135M, 2 threads of an Intel Xeon. llama.cpp computes every logit; solm's greedy steps need not.",
        "Curves: 4-bit weights, int8 KV cache; settings that no other one beats in both; "
        f"{texts[1024]} texts and {texts[8064]} books.",
    )):  # fmt: skip
        canvas.text((90, zero + 115 + 21 * row), words, "quiet")
    return canvas.svg()


def context() -> str:
    """Milliseconds of a decode step by context."""
    canvas = Canvas(880, 430, "Milliseconds of a decode step by context")
    contexts = timed.contexts()
    across, high = scale(64, 4096, 70, 590, log=True), scale(2, 64, 360, 50, log=True)
    for tick in (2, 4, 8, 16, 32, 64):
        canvas.line((70, high(tick)), (590, high(tick)), "grid")
        canvas.text((60, high(tick) + 4), f"{tick} ms", "quiet", "end")
    for tick in contexts:
        canvas.text((across(tick), 382), f"{tick:,}", "quiet", "middle")
    canvas.text((330, 408), "tokens in the context", "quiet", "middle")
    canvas.text((70, 28), "A decode step of SmolLM2-135M, 2 threads of an Intel Xeon", "title")
    series: tuple[tuple[str, str, bool, Callable[[int], float]], ...] = (
        ("transformers, bfloat16", GREY, False, timed.transformers_step),
        ("llama.cpp Q8_0", PINK, False, lambda at: timed.llama_cpp_step("Q8_0", at)),
        ("llama.cpp Q4_1", PINK, True, lambda at: timed.llama_cpp_step("Q4_1", at)),
        ("solm int8, dense", BLUE, False, lambda at: timed.step("int8", "dense", at)),
        ("solm 4-bit, int8 KV cache, dense", BLUE, True, lambda at: timed.step(BEST, "dense", at)),
        ("... pages 0.2, MLP 0.6", TEAL, False, lambda at: timed.step(BEST, "pages 0.2, mlp 0.6", at)),
    )
    label = -100.0
    for words, colour, dashed, read in series:
        points = [(across(at), high(read(at))) for at in contexts]
        canvas.curve(points, colour, dashed)
        for point in points:
            canvas.dot(point, colour)
        label = max(points[-1][1] + 4, label + 17)
        canvas.text((604, label), f"{words}: {read(contexts[-1]):.1f}")
    return canvas.svg()


def ladder() -> str:
    """Milliseconds per token against bits per byte: dense models in several types, and budgets on them."""
    canvas = Canvas(880, 500, "Milliseconds per token against bits per byte of text")
    rungs = published_ladder.rungs()
    slowest, fastest = (pick(rung.milliseconds for rung in rungs) for pick in (max, min))
    first, last = floor(log2(fastest)), ceil(log2(slowest))
    least, most = (pick(10 * rung.bits for rung in rungs) for pick in (min, max))
    low, high = floor(least) / 10, ceil(most) / 10
    across, up = scale(2**first, 2**last, 90, 845, log=True), scale(low, high, 360, 60)
    for step in range(round(10 * low), round(10 * high) + 1):
        canvas.line((90, up(step / 10)), (845, up(step / 10)), "grid")
        canvas.text((82, up(step / 10) + 4), f"{step / 10:.1f}", "quiet", "end")
    for tick in (2**power for power in range(first, last + 1)):
        canvas.line((across(tick), 360), (across(tick), 365), "axis")
        canvas.text((across(tick), 380), f"{tick:g}", "quiet", "middle")
    canvas.text((467, 402), "milliseconds per token (left is faster)", "quiet", "middle")
    canvas.text((26, 210), "bits per byte (lower is better)", "quiet", "middle", -90)
    colours = dict(zip(dict.fromkeys(rung.model for rung in rungs), (PINK, BLUE, ORANGE, GREY), strict=False))
    for model, colour in colours.items():
        ours = [rung for rung in rungs if rung.model == model]
        turned = [rung for rung in ours if rung.own_type]
        canvas.curve([(across(rung.milliseconds), up(rung.bits)) for rung in turned], colour)
        for rung in ours:
            at = across(rung.milliseconds), up(rung.bits)
            canvas.dot(at, colour, rung.dialled)
            if not rung.dialled:
                canvas.text((at[0] + 8, at[1] + (16 if rung.own_type else -8)), rung.type, "quiet")
    entries = [(model, colour, False) for model, colour in colours.items()]
    canvas.legend((90, 430), [*entries, ("under a budget, on the file's own type", GREY, True)])
    canvas.text((90, 470), f"{len(rungs[0].texts)} passages of text, the same bytes for all.", "quiet")
    return canvas.svg()


_LATER = (("ladder", "ladder", ladder), ("larger", "engine-0.5b", larger), ("load", RUN, load))
FIGURES = {"quality": quality, "context": context} | {name: draw for name, needs, draw in _LATER if measured(needs)}
"""What draws docs/figures/NAME.svg, by name."""
