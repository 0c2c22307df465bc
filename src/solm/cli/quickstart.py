"""`solm quickstart`: decode under budgets, fit a policy to the embedded model, compare it, and use it."""

import math
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from solm.cli import checks
from solm.cli.options import DEFAULT_MODEL
from solm.cli.output import Progress, Result, say, table
from solm.core.errors import SolmError

if TYPE_CHECKING:
    from solm.evaluation.result import EvaluationResult

MODEL, SHIPPED, DATA = DEFAULT_MODEL, "builtin:smollm2-135m-cpu", "pydoc:train"
CONTEXT, BUDGETS, TOKENS, ROUNDS = 4000, (0.9, 0.8), 100, 3
"""Of the decoding that is timed. Budgets are shares of the dense step's time. A short prompt would show little: a step
that reads many keys has more to leave out."""
BUDGET = "loss=0.01"
"""Of the reply to a short prompt: what nobody notices."""
PASSAGE = "Compound statements"
QUESTION = "Explain in a few sentences what the text above says about compound statements."
PROMPT = "Explain step by step why the sky is blue, and why it turns red in the evening."

Report = Callable[[str, int, int | None], None]
"""Called with what is done now, parts done and parts in all."""


def quickstart(out: Path = Path("runs/quickstart"), minutes: float = 1.75, pretrained: bool = False) -> Result:
    """Decode under budgets; then fit, compare and use a policy for the embedded model, in minutes.

    A second run continues an interrupted fit, and reuses a finished one.

    \b
    Examples:
      solm quickstart
      solm quickstart --pretrained
      solm quickstart --out /tmp/quick --minutes 4

    Args:
        out: Folder for the fit.
        minutes: Minutes of the fit; more of them measure more.
        pretrained: Use the policy that comes with solm instead of fitting one.
    """

    checks.fit_options(out, minutes)
    say(
        "1. One prompt, dense and under two budgets, on this machine: about half a minute, and a minute at first.\n"
        f"2. {'No fit' if pretrained else f'A fit of about {minutes:g} minutes, with a comparison on held-out text'}.\n"
        "3. A reply under the policy. After Ctrl-C the same command continues.\n"
    )
    policy, result = SHIPPED, None
    try:
        with Progress() as progress:
            speeds = decode(progress.show)
            if not pretrained:
                try:
                    result, policy = fitted(out / "fit", minutes, progress.show), str(out / "fit" / "policy")
                except SolmError as error:  # such as on a machine so busy that steps of all levels take the same time
                    say(f"the fit failed: {error}\nThe reply is by the policy that comes with solm")
            reply = answered(policy, progress.show)
    except KeyboardInterrupt:
        say(f"interrupted; finished parts are kept. Continue with: {shlex.join(['solm', *sys.argv[1:]])}")
        raise typer.Exit(130) from None
    cells = [
        [
            "dense" if one["budget"] is None else f"budget {one['budget']:.2f}", f"{one['ms_per_token']:.2f}",
            f"{speeds[0]['ms_per_token'] / one['ms_per_token']:.2f}×",
            *(f"{one[share]:.2f}" for share in ("bytes", "attention", "mlp")), one["text"].strip()[:60],
        ]
        for one in speeds
    ]  # fmt: skip
    columns = ("", "ms per token", "speed", "bytes read", "KV pages", "MLP channels", "text")
    parts: list[Any] = [table(f"After about {CONTEXT:,} tokens", columns, cells), f"\n{PROMPT}\n{reply['text']}\n"]
    if result is not None:
        from solm.evaluation import show

        parts += [show.table(result, 130), *(f"Fitted policy: {line}." for line in show.verdict(result))]
    parts += [f"policy: {policy}", f"Next: solm chat --policy {SHIPPED} --budget 0.9"]
    return Result({"policy": policy, "speeds": speeds, "reply": reply}, parts)


def decode(progress: Report) -> list[dict[str, Any]]:
    """Decode one prompt, which is read once, dense and under budgets with the policy that ships with solm: by budget
    (None: dense) the text, realised shares, and milliseconds per token, the median over interleaved rounds."""
    from solm.evaluation.texts import documents
    from solm.runtime.load import load
    from solm.runtime.reply import Reply, step_milliseconds

    progress("loading the model, and building the engine at the first run", 0, None)
    lm = load(MODEL, SHIPPED, backend="cpu").timed(progress)
    assert lm.tokenizer is not None
    passage = max(documents("pydoc"), key=lambda document: (document.startswith(PASSAGE), len(document)))
    beginning = lm.tokenizer.decode(lm.tokenizer(passage).input_ids[:CONTEXT])
    ids = lm.encode(f"{beginning}\n\n{QUESTION}")
    length = ids.shape[1]
    progress(f"reading a prompt of {length:,} tokens", 0, None)
    read = lm.session(capacity=length)
    read.prefill(ids[:, :-1])
    floor = lm.budgets().time_floor(length)
    budgets = (None, *(budget for budget in BUDGETS if budget > floor))
    times: dict[float | None, list[float]] = {budget: [] for budget in budgets}
    replies: dict[float | None, Reply] = {}
    for done, budget in enumerate(budgets * ROUNDS):
        progress("decoding dense and under budgets", done, ROUNDS * len(budgets))
        stream = lm.stream(
            ids, budget=budget, policy="dense" if budget is None else None, max_new_tokens=TOKENS, guess="off",
            session=read.copy(length - 1, length + TOKENS),
        )  # fmt: skip
        times[budget].append(step_milliseconds([time.perf_counter() for _ in stream]) or math.nan)
        replies[budget] = stream.reply
    lm.detach()
    return [
        {"budget": budget, "ms_per_token": statistics.median(times[budget]), "text": reply.text}
        | reply.compute.realised
        for budget, reply in replies.items()
    ]


def fitted(out: Path, minutes: float, progress: Report) -> "EvaluationResult":
    """Fit a policy in the folder `out`, where an interrupted fit goes on; the comparison on held-out text."""
    from solm.evaluation.texts import token_stream
    from solm.fit.run import fit
    from solm.runtime.load import load

    lm = load(MODEL, backend="cpu")
    assert lm.tokenizer is not None
    return fit(
        lm, [token_stream(DATA, lm.tokenizer)], out, minutes, strict=False, remark=say,
        report=lambda phase, done, total, left: progress(f"fit: {phase}", done, total),
    )  # fmt: skip


def answered(policy: str, progress: Report) -> dict[str, Any]:
    """A reply to a short prompt under a policy."""
    from solm.runtime.load import load

    progress("a reply under the policy", 0, None)
    lm = load(MODEL, policy, backend="cpu")
    reply = lm.generate(PROMPT, budget=BUDGET, max_new_tokens=TOKENS).as_dict()
    lm.detach()
    return reply
