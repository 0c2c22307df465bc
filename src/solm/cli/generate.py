"""`solm generate`."""

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solm.cli import checks
from solm.cli.options import ModelOptions, ReplyOptions, mention_policy
from solm.cli.output import print_json, read_weights, say
from solm.core.errors import DataError, argument

if TYPE_CHECKING:
    from solm.runtime.language_model import LanguageModel
    from solm.runtime.reply import Reply, Token


def generate(
    prompt: str,
    /,
    model: ModelOptions,
    options: ReplyOptions = ReplyOptions(max_new_tokens=128),
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Generate text under a compute budget. In a terminal, tokens are coloured by what they cost.

    \b
    Examples:
      solm generate --policy builtin:smollm2-135m-cpu --budget 0.9 "Why is the sky blue?"
      solm generate --budget mlp=0.7 "Why is the sky blue?"
      solm generate --policy builtin:smollm2-135m-cpu --budget keep=0.7 --json "Hello" | jq .realised

    Args:
        prompt: The prompt; - reads it from standard input.
        out: Write the reply here, as JSON.
    """
    from solm.core.files import write_json
    from solm.runtime.language_model import check_length
    from solm.runtime.prompts import encode

    try:
        text = sys.stdin.read() if prompt == "-" else prompt
    except OSError as error:
        raise DataError(f"PROMPT: cannot read standard input: {error.strerror or error}") from error
    generation, budget = options.generation(), options.budget
    checks.out_file(out)
    prepared = options.prepare(model)
    told = generation.pop("chat_template_kwargs", None)
    with argument("prompt"):
        ids = encode(prepared.tokenizer, text, options.system, told)
        check_length(ids.shape[1], options.max_new_tokens, prepared.facts.context)
    options.check_budget(prepared, ids.shape[1])
    if options.policy is None and budget is not None:
        mention_policy(prepared)
    lm = read_weights(prepared, budget)
    with argument("budget"):
        stream = lm.stream(ids, budget=budget, policy=options.decider, **generation)
    moments: list[float] = []
    try:
        deque(printed(stream, lm.tokenizer, moments, shown=not json), maxlen=0)
    except KeyboardInterrupt:
        if not json:
            print(flush=True)
        raise
    finally:
        reply = stream.reply
        if out is not None and moments:
            write_json(out, _described(lm, budget, reply))
    if json:
        print_json(_described(lm, budget, reply))
        return
    print()
    show_facts(lm, budget, reply, moments, ids.shape[1])


def _described(lm: "LanguageModel", budget: str | None, reply: "Reply") -> dict[str, Any]:
    """The reply for machines, with the budget as it was typed, what its times were measured on, and this machine's
    clock, which --timings takes."""
    times = reply.budgets.timings  # those of its start
    described = reply.as_dict() | {"budget": budget, "measured_on": None if times is None else times.measured_on}
    return described | ({} if times is None else {"clock": times.model_dump(mode="json")})


def printed(tokens: "Iterable[Token]", tokenizer: Any, moments: list[float], shown: bool = True) -> "Iterator[Token]":
    """The same tokens, each printed before it is handed on, in colour on a terminal; the end's are not. moments: gets
    the time of each, in seconds. shown: False prints nothing."""
    coloured, special = sys.stdout.isatty(), set(tokenizer.all_special_ids)
    for token in tokens:
        moments.append(time.perf_counter())
        if shown and token.id not in special:
            print(paint(token.text, token.cost) if coloured else token.text, end="", flush=True)
        yield token


def paint(text: str, cost: float) -> str:
    """`text` in a terminal colour from green (cheap) to red (dense)."""
    hot = min(1.0, max(0.0, (cost - 0.6) / 0.4))
    return f"\x1b[38;2;{int(60 + 170 * hot)};{int(190 - 110 * hot)};80m{text}\x1b[0m"


def show_facts(
    lm: "LanguageModel", budget: str | None, reply: "Reply", moments: list[float], prompt: int, more: str = ""
) -> None:
    """Say how fast a reply to `prompt` tokens came, and what was guessed; under a budget what was requested and
    realised in all units that are measured, and where times and losses come from.

    moments: when its tokens were chosen, in seconds. more: to be said beside its speed.
    """
    from solm.core.budget import in_words
    from solm.runtime.reply import step_milliseconds

    requested, trained, context = reply.compute.requested, lm.trained, prompt + len(reply.tokens) // 2
    if budget is not None:
        say(f"requested: {budget}: {in_words(requested)}")
        say(f"realised:  {in_words(reply.compute.realised)}")
    if budget is not None and lm.timings is not None:
        where = f"step times: measured on {lm.timings.measured_on}"
        if reply.compute.verified:
            where += "; loss: measured"
        elif trained is not None and trained.curve is not None and requested.keys() & {"loss", "loss_above"}:
            where += f"; loss: from the policy's curve at {trained.curve.nearest(context):,} tokens"
        say(f"           {where}")
    step = step_milliseconds(moments)
    speed = "too short to be timed" if step is None else f"{1000 / step:.1f} tokens/s, {step:.1f} ms per token"
    say(f"speed:     {speed}, {lm.backend.name}{more}")
    if reply.trace.guessed:
        sources = ", ".join(f"{kept} of {made} by {name}" for name, (made, kept) in reply.trace.guesses.items())
        say(f"guesses:   kept {sources}; {reply.trace.per_pass:.2f} tokens a pass")
