"""The table of the engine's instruction sets beside llama.cpp built for the same ones."""

from typing import Any

from cells import NONE, markdown, table
from published import RESULTS, read

MODELS = {"variants-135m": "SmolLM2-135M", "variants-0.5b": "Qwen2.5-Coder-0.5B"}
"""By result, the model that it is about. Shown are those that have been measured."""
LLAMA = "llama.cpp"
EVERY_LOGIT = "dense, every logit"


@table
def variants() -> str:
    """Prompts and steps by instruction set; nothing where they were not measured."""
    measured = [name for name in MODELS if (RESULTS / f"{name}.json").exists()]
    if not measured:
        return ""
    found = {name: read(name)["variants"] for name in measured}
    points = [("prompt", 1024, 0)]
    points += [("step", context, rows) for rows in (1, 16) for context in (64, 1024, 4096)]
    points = [point for point in points if any(_at(one, *point) for all in found.values() for one in all.values())]
    names = {0: "prompt of {:,}, tokens/s", 1: "step after {:,}, ms", 16: "16 rows after {:,}, ms"}
    rows = [
        [MODELS[name], f"`{variant}`", *(_cell(ours, *point) for point in points)]
        for name, every in found.items()
        for variant, ours in every.items()
    ]
    head = ("Model", "Instruction set", *(names[count].format(context) for _, context, count in points))
    return (
        "Two threads of an AMD EPYC without AVX-512, the file's own weights and every logit. In a cell: llama.cpp"
        " compiled for the\nsame instruction set → solm (how many times as fast). Where llama.cpp was not measured"
        " there is solm's number\nalone. `native` is AVX2 here."
        "\n\n" + markdown(head, rows, words=2)
    )


def _at(found: dict[str, Any], kind: str, context: int, rows: int) -> float | None:
    """Tokens per second of a prompt, or milliseconds of a step; None where it was not measured."""
    one = found["contexts"].get(str(context))
    if one is None:
        return None
    if kind == "prompt":
        return float(one["prefill_tokens_per_second"]["median"])
    setting = EVERY_LOGIT if EVERY_LOGIT in one["step_ms"] else "dense"
    taken = one["step_ms"].get(setting, {}).get(str(rows))
    return None if taken is None else float(taken["median"])


def _cell(ours: dict[str, Any], kind: str, context: int, rows: int) -> str:
    after = _at(ours, kind, context, rows)
    before = _at(ours[LLAMA], kind, context, rows) if LLAMA in ours else None
    digits = 0 if kind == "prompt" else 1
    if after is None:
        return NONE
    if before is None:
        return f"{after:,.{digits}f}"
    gain = after / before if kind == "prompt" else before / after
    return f"{before:,.{digits}f}\u00a0→\u00a0{after:,.{digits}f} ({gain:.2f}×)"
