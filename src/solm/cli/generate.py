"""`solm generate`."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from solm.cli import checks
from solm.cli.options import JsonOption, ModelOptions, ReplyOptions, mention_policy
from solm.core.errors import DataError, argument

if TYPE_CHECKING:
    from solm.runtime.language_model import LanguageModel
    from solm.runtime.reply import Reply

_NOTICEABLE = 0.02
"""Share of the tokens read above what was requested."""


@dataclass(frozen=True)
class ShortReplyOptions(ReplyOptions):
    """The same, for replies of half the length where nothing else is said."""

    max_new_tokens: Annotated[int, typer.Option(help="Longest reply.", min=1)] = 128


def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    model: ModelOptions,
    options: ShortReplyOptions,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the reply here, as JSON.")] = None,
    json: JsonOption = False,
) -> None:
    """Generate text under a compute budget. In a terminal, tokens are coloured by what they cost.

    \b
    Examples:
      solm generate --policy builtin:smollm2-135m-cpu --budget 0.9 "Why is the sky blue?"
      solm generate --budget mlp=0.7 "Why is the sky blue?"
      solm generate --policy builtin:smollm2-135m-cpu --budget keep=0.7 --json "Hello" | jq .realised
    """
    from solm.cli.output import describe_speed, print_result, read_weights, reason, say, show_cost
    from solm.core.errors import check_unicode
    from solm.core.files import write_json
    from solm.runtime.language_model import check_length
    from solm.runtime.prompts import encode

    try:
        text = sys.stdin.read() if prompt == "-" else prompt
    except OSError as error:
        raise DataError(f"PROMPT: cannot read standard input: {reason(error)}") from error
    if not text.strip():
        raise DataError("PROMPT: the prompt is empty")
    check_unicode(text, "PROMPT: the prompt")
    generation, budget = options.generation(), options.budget
    checks.out_file(out)
    prepared = options.prepare(model)
    with argument("prompt"):
        ids = encode(prepared.tokenizer, text, options.system)
        check_length(ids.shape[1], options.max_new_tokens, prepared.context)
    with argument("budget"):
        prepared.budgets().budget(budget, ids.shape[1] + options.max_new_tokens // 2)
    if options.policy is None and budget is not None:
        mention_policy(prepared)
    lm = read_weights(prepared)
    stream = lm.stream(ids, budget=budget, policy=options.decider, **generation)
    moments: list[float] = []
    coloured, special = sys.stdout.isatty() and not json, set(lm.tokenizer.all_special_ids)
    try:
        for token in stream:
            moments.append(time.perf_counter())
            if not json and token.id not in special:  # not the end's
                print(paint(token.text, token.cost) if coloured else token.text, end="", flush=True)
    except KeyboardInterrupt:
        if not json:
            print(flush=True)
        raise
    finally:
        reply = stream.reply
        if out is not None and moments:
            write_json(out, _described(lm, budget, reply))
    print_result(_described(lm, budget, reply), json, "")
    if json:
        return
    saved = show_cost(lm, budget, reply, moments, ids.shape[1])
    if reply.compute.realised["attention"] > reply.compute.requested["attention"] + _NOTICEABLE:
        first, last = lm.sparsity.sinks, lm.sparsity.window
        say(f"           attention always reads the first {first} and the last {last} tokens, more than asked for")
    say(f"speed:     {describe_speed(moments)}, {lm.backend.name}")
    if saved is not None:
        say(f"saved:     {saved}")


def _described(lm: "LanguageModel", budget: str | None, reply: "Reply") -> dict[str, Any]:
    """The reply for machines, with the budget as it was typed and what its times were measured on."""
    measured = None if lm.timings is None else lm.timings.measured_on
    return reply.as_dict() | {"budget": budget, "measured_on": measured}


def paint(text: str, cost: float) -> str:
    """`text` in a terminal colour from green (cheap) to red (dense)."""
    hot = min(1.0, max(0.0, (cost - 0.6) / 0.4))
    return f"\x1b[38;2;{int(60 + 170 * hot)};{int(190 - 110 * hot)};80m{text}\x1b[0m"
