"""What guessing gains: milliseconds per token of dense replies by what is guessed, and of passes over known tokens.

    python evidence/bench/guess.py --model FILE.gguf --gsm8k gsm8k.jsonl --count 10 --out guess.json
    python evidence/bench/guess.py --model LARGE.gguf --draft SMALL.gguf --gsm8k gsm8k.jsonl --out guess.json

Every prompt is answered greedily by every arm, in turns: `off` (no guesses), `auto` (source and number decided before
every pass), and constants such as `text 3` and `draft 4` (always so many guesses, from texts or by the draft model).
`same`: of how many prompts all arms' replies have the same tokens. Works: chat (prompts of many kinds), mathematics
(GSM8K, where a file is given), editing (a function of Python's standard library, with a name changed), summaries (a
part of its documentation). `gains`: per arm the geometric mean over prompts of the milliseconds per token without
guesses over those with, with a 95 % interval by bootstrap over prompts. `best`: the constant that gains most on this
work, known only afterwards, and `over_best` its milliseconds over those of `auto`. `passes`: milliseconds of one pass
over so many known tokens of a row, over `--rounds`.
"""

import inspect
import pydoc
import statistics
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import solm
from evidence.bench.common import Kept, draw_text, finish, numbers, parser, spread
from evidence.bench.timed_engines import KNOWN, known_passes
from evidence.studies import problems
from solm.runtime.controlled import ControlledModel
from solm.runtime.guess import Guesser

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


@dataclass(frozen=True)
class Arm:
    """How replies guess. It learns from its own replies alone."""

    lm: solm.LanguageModel
    guess: str | int
    draft: ControlledModel | None
    guesser: Guesser = field(default_factory=Guesser)

    def timed(self, prompt: Messages, tokens: int) -> tuple[float, Any]:
        """Milliseconds per token after the first one, and the reply."""
        self.lm.draft, self.lm.guesser = self.draft, self.guesser
        if self.draft is not None:
            vars(self.draft).pop("prefixes", None)  # or it would have read the prompt for another arm
        stream = self.lm.stream(prompt, guess=self.guess, max_new_tokens=tokens)
        next(stream)
        begun = time.perf_counter()
        count = sum(1 for _ in stream)
        return 1e3 * (time.perf_counter() - begun) / max(count, 1), stream.reply


def arms(lm: solm.LanguageModel, texts: list[int], drafts: list[int]) -> dict[str, Arm]:
    """No guesses, the policy, and constant numbers of guesses by source."""
    found = {"off": Arm(lm, "off", None), "auto": Arm(lm, "auto", lm.draft)}
    found |= {f"text {count}": Arm(lm, count, None) for count in texts}
    return found | {f"draft {count}": Arm(lm, count, lm.draft) for count in drafts if lm.draft is not None}


def gain(ratios: list[float]) -> dict[str, float]:
    """Geometric mean of ratios with a 95 % interval."""
    logs, draw = np.log(ratios), np.random.default_rng(0)
    means = [draw.choice(logs, len(logs)).mean() for _ in range(2000)]
    low, high = np.exp(np.percentile(means, (2.5, 97.5)))
    return {"value": float(np.exp(logs.mean())), "low": float(low), "high": float(high)}


def measured(arms: dict[str, Arm], prompts: list[Messages], tokens: int) -> dict[str, Any]:
    """One work. Every prompt is answered once by each arm: a second time its reply would be recalled."""
    ms: dict[str, list[float]] = {name: [] for name in arms}
    same, sources = 0, dict[str, list[int]]()
    for number, prompt in enumerate(prompts):
        replies = {}
        for name in arms if number % 2 else reversed(arms):
            taken, replies[name] = arms[name].timed(prompt, tokens)
            ms[name].append(taken)
        same += all(reply.trace.ids == replies["off"].trace.ids for reply in replies.values())
        for source, counts in replies["auto"].trace.guesses.items():
            sources[source] = [sum(pair) for pair in zip(counts, sources.get(source, [0, 0]), strict=True)]

    def ratio(slow: str, fast: str) -> dict[str, float]:
        return gain([a / b for a, b in zip(ms[slow], ms[fast], strict=True)])

    gains = {name: ratio("off", name) for name in arms if name != "off"}
    best = max((name for name in gains if name != "auto"), key=lambda name: gains[name]["value"])
    guessed, accepted = (sum(counts[place] for counts in sources.values()) for place in (0, 1))
    return {
        "prompts": len(prompts), "same": same, "guessed": guessed, "accepted": accepted,
        "sources": {name: {"guessed": made, "accepted": kept} for name, (made, kept) in sources.items()},
        "ms": {name: spread(values) for name, values in ms.items()},
        "gain": gains["auto"], "gains": gains, "best": best, "over_best": ratio(best, "auto"),
    }  # fmt: skip


def passes(lm: solm.LanguageModel, context: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a pass over known tokens of a row that has read `context`."""
    ids = draw_text(lm, 1, context + max(KNOWN)).numpy()
    session = lm.session(context + max(KNOWN))
    session.prefill(ids[:, :context])
    return known_passes(session, ids[0, context:], rounds)


def main() -> int:
    options_parser = parser(__doc__, "rounds")
    options_parser.add_argument("--gsm8k", type=Path, help="problems in JSON lines")
    options_parser.add_argument("--count", type=int, default=8, help="prompts of each work")
    options_parser.add_argument("--tokens", type=int, default=160, help="tokens of a reply at most")
    options_parser.add_argument("--contexts", default="64,1024", help="tokens before the passes over known tokens")
    options_parser.add_argument("--draft", help="draft model: a smaller one of the same vocabulary")
    options_parser.add_argument("--texts", default="1,3,6", help="constant numbers of guesses from texts")
    options_parser.add_argument("--drafts", default="2,4,6", help="the same by the draft model")
    options = options_parser.parse_args()
    lm = solm.load(options.model, backend="cpu", draft=options.draft)
    results: dict[str, Any] = {"passes": {}, "works": {}}
    lines, kept = [], Kept(options)
    for context in map(int, numbers(options.contexts)):
        found = kept.get(f"passes after {context:,}", lambda: passes(lm, context, options.rounds))  # noqa: B023
        results["passes"][str(context)] = found
        lines.append(
            f"after {context:,}: " + ", ".join(f"{count} {ms['median']:.1f} ms" for count, ms in found.items())
        )
    compared = arms(lm, *([int(count) for count in numbers(given)] for given in (options.texts, options.drafts)))
    for name, prompts in works(options.count, options.gsm8k).items():
        work = kept.get(name, lambda: measured(compared, prompts, options.tokens))  # noqa: B023
        results["works"][name] = work
        gains = ", ".join(f"{arm} {found['value']:.2f}" for arm, found in work["gains"].items())
        low, high = (work["gain"][end] for end in ("low", "high"))
        lines.append(
            f"{name:12} {gains} (auto {low:.2f} to {high:.2f}); auto over {work['best']} "
            f"{work['over_best']['value']:.2f}; accepted {work['sources']}; "
            f"{work['same']} of {work['prompts']} replies the same"
        )
        print(lines[-1], file=sys.stderr, flush=True)
    finish("guess", options, results, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
