"""What guessing gains: milliseconds per token of dense replies with and without it, and of passes over known tokens.

    python evidence/bench/guess.py --model FILE.gguf --gsm8k gsm8k.jsonl --count 10 --out guess.json

Every reply is decoded greedily with and without guesses, in turns. `same`: of how many prompts both replies have the
same tokens. Works: chat (prompts of many kinds), mathematics (GSM8K, where a file is given), editing (a function of
Python's standard library, with a name changed), summaries (a part of its documentation). `gain`: the geometric mean
over prompts of the milliseconds per token without guesses over those with, with a 95 % interval by bootstrap over
prompts. `passes`: milliseconds of one pass over so many known tokens of a row.
"""

import inspect
import pydoc
import statistics
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np

import solm
from evidence.bench.common import clock, draw_text, finish, in_turns, numbers, parser, spread
from evidence.studies import problems

_KNOWN = (1, 2, 4, 8, 16)
"""Tokens of a pass."""
Messages = list[dict[str, str]]


def works(count: int, gsm8k: Path | None) -> dict[str, list[Messages]]:
    """Prompts of every work, `count` of each."""
    found = {"chat": [list(problem.messages) for problem in problems.chat(problems.BUILTIN)]}
    if gsm8k is not None:
        found["mathematics"] = [list(problem.messages) for problem in problems.gsm8k(gsm8k)]
    functions = [one for _, one in inspect.getmembers(textwrap, inspect.isfunction)]
    functions += [one for _, one in inspect.getmembers(statistics, inspect.isfunction) if one.__doc__]
    asked = "Rename the first parameter of this function to `value` and print the whole function again.\n\n"
    found["editing"] = [_user(asked + inspect.getsource(one)[:1600]) for one in functions]
    pages = [
        pydoc.render_doc(name, renderer=pydoc.plaintext)
        for name in ("json", "heapq", "bisect", "glob", "csv", "shutil")
    ]
    texts = [page[start : start + 4000] for page in pages for start in (0, 4000)]
    found["summaries"] = [_user("Summarise this documentation in a few sentences.\n\n" + text) for text in texts]
    return {name: prompts[:: max(1, len(prompts) // count)][:count] for name, prompts in found.items()}


def _user(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def timed(lm: solm.LanguageModel, prompt: Messages, guess: str, tokens: int) -> tuple[float, Any]:
    """Milliseconds per token after the first one, and the reply."""
    stream = lm.stream(prompt, guess=guess, max_new_tokens=tokens)
    next(stream)
    begun = time.perf_counter()
    count = sum(1 for _ in stream)
    return 1e3 * (time.perf_counter() - begun) / max(count, 1), stream.reply


def gain(ratios: list[float]) -> dict[str, float]:
    """Geometric mean of ratios with a 95 % interval."""
    logs, draw = np.log(ratios), np.random.default_rng(0)
    means = [draw.choice(logs, len(logs)).mean() for _ in range(2000)]
    low, high = np.exp(np.percentile(means, (2.5, 97.5)))
    return {"value": float(np.exp(logs.mean())), "low": float(low), "high": float(high)}


def measured(lm: solm.LanguageModel, prompts: list[Messages], options: Any) -> dict[str, Any]:
    """One work."""
    ms: dict[str, list[float]] = {"off": [], "auto": []}
    same = guessed = accepted = 0
    for prompt in prompts:
        times: dict[str, list[float]] = {"off": [], "auto": []}
        replies = {}
        for number in range(options.rounds):
            for guess in ("off", "auto") if number % 2 else ("auto", "off"):
                taken, replies[guess] = timed(lm, prompt, guess, options.tokens)
                times[guess].append(taken)
        for guess, values in times.items():
            ms[guess].append(statistics.median(values))
        same += replies["off"].trace.ids == replies["auto"].trace.ids
        guessed, accepted = guessed + replies["auto"].trace.guessed, accepted + replies["auto"].trace.accepted
    return {
        "prompts": len(prompts), "same": same, "guessed": guessed, "accepted": accepted,
        "ms": {guess: spread(values) for guess, values in ms.items()},
        "gain": gain([off / auto for off, auto in zip(ms["off"], ms["auto"], strict=True)]),
    }  # fmt: skip


def passes(lm: solm.LanguageModel, context: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a pass over known tokens of a row that has read `context`."""
    ids = draw_text(lm, 1, context + max(_KNOWN)).numpy()
    session = lm.session(context + max(_KNOWN))
    session.prefill(ids[:, :context])

    def median(count: int) -> float:
        def run() -> None:
            session.extend(ids[:, context : context + count], exact_largest=1)

        found = []
        for _ in range(8):
            found.append(clock(run))
            session.truncate(np.array([context]))
        return statistics.median(found)

    turns = in_turns({count: lambda count=count: median(count) for count in _KNOWN}, rounds)
    return {str(count): spread(values) for count, values in turns.items()}


def main() -> int:
    options_parser = parser(__doc__, "rounds")
    options_parser.add_argument("--gsm8k", type=Path, help="problems in JSON lines")
    options_parser.add_argument("--count", type=int, default=8, help="prompts of each work")
    options_parser.add_argument("--tokens", type=int, default=160, help="tokens of a reply at most")
    options_parser.add_argument("--contexts", default="64,1024", help="tokens before the passes over known tokens")
    options = options_parser.parse_args()
    lm = solm.load(options.model, backend="cpu")
    results: dict[str, Any] = {"passes": {}, "works": {}}
    lines = []
    for context in map(int, numbers(options.contexts)):
        results["passes"][str(context)] = found = passes(lm, context, options.rounds)
        lines.append(
            f"after {context:,}: " + ", ".join(f"{count} {ms['median']:.1f} ms" for count, ms in found.items())
        )
    for name, prompts in works(options.count, options.gsm8k).items():
        results["works"][name] = work = measured(lm, prompts, options)
        share = work["accepted"] / max(work["guessed"], 1)
        lines.append(
            f"{name:12} {work['gain']['value']:.2f} times ({work['gain']['low']:.2f} to {work['gain']['high']:.2f}), "
            f"{share:.2f} of {work['guessed']} guesses accepted, {work['same']} of {work['prompts']} replies the same"
        )
        print(lines[-1], file=sys.stderr, flush=True)
    finish("guess", options, results, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
