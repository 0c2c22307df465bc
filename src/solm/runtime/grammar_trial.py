"""Whether a grammar compiles in bounded time and memory: it is tried in a process of its own, which can be ended.

llguidance's limits count what its lexer and parser do, and not what putting together a regular expression or a schema
takes: some schemas of a hundred lines keep a thread busy for hours, and a thread cannot be ended. What takes that long
does not depend on the vocabulary, so that the process has one of single bytes, and little memory.
"""

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from solm.runtime.grammars import GrammarError, lark_of

_STARTED = 60.0
"""Seconds until the process has to answer for the first time."""
_MEMORY = 1 << 30
"""Bytes that it may address beyond what it does at its start."""
_END = "</s>"


class GrammarTooSlowError(GrammarError):
    """A grammar that was not compiled in time."""


class GrammarTrial:
    """The process: started when it is needed first, and again after it was ended. For one thread at a time.

    vocabulary: tokens of the model, whose numbers grammars may name.
    """

    def __init__(self, vocabulary: int):
        self._vocabulary = vocabulary
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, grammar: str, seconds: float) -> None:
        """Compile `Grammar.text` there.

        Raises `GrammarError` for a grammar that is malformed or too large, `GrammarTooSlowError` after `seconds`.
        """
        self._done({"grammar": grammar}, seconds)

    def converted(self, gbnf: str, seconds: float) -> str:
        """`solm.runtime.grammars.lark_of` there; raises as `run`."""
        return str(self._done({"gbnf": gbnf}, seconds))

    def _done(self, asked: dict[str, str], seconds: float) -> Any:
        """What the process makes of it."""
        if seconds <= 0:
            raise GrammarTooSlowError("not compiled in time, with the grammars before it")
        process = self.process
        if process is None or process.poll() is not None:
            process = self.process = _started(self._vocabulary)
        try:
            answer = _asked(process, {**asked, "seconds": seconds}, seconds)
        except TimeoutError:
            self.close()
            raise GrammarTooSlowError(f"not compiled in {seconds:.3g} s") from None
        except (OSError, ValueError):
            self.close()
            raise GrammarError(f"compiling it takes more than {_MEMORY >> 20} MiB of memory") from None
        if answer["error"] is not None:
            raise GrammarError(answer["error"])
        return answer.get("lark")

    def close(self) -> None:
        """End the process, whatever it does."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                try:
                    pipe.close()
                except OSError:  # what was written and never read
                    continue


def _started(vocabulary: int) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(vocabulary)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _answer(process, time.monotonic() + _STARTED)
    except (OSError, ValueError) as error:
        process.kill()
        process.wait()
        raise GrammarError("the process that tries grammars does not start") from error
    return process


def _asked(process: "subprocess.Popen[bytes]", question: object, seconds: float) -> dict[str, str | None]:
    """What the process says to a question; raises `TimeoutError`, and `OSError` or `ValueError` where it has ended."""
    end = time.monotonic() + seconds
    assert process.stdin is not None
    process.stdin.write(json.dumps(question).encode() + b"\n")
    process.stdin.flush()
    return _answer(process, end)


def _answer(process: "subprocess.Popen[bytes]", end: float) -> dict[str, str | None]:
    assert process.stdout is not None
    line, waiting = b"", select.poll()
    waiting.register(process.stdout, select.POLLIN)
    while not line.endswith(b"\n"):
        if not waiting.poll(max(0.0, 1000 * (end - time.monotonic()))):
            raise TimeoutError
        part = os.read(process.stdout.fileno(), 1 << 16)
        if not part:
            raise ValueError("the process has ended")
        line += part
    answer: dict[str, str | None] = json.loads(line)
    return answer


def _try_all(vocabulary: int) -> None:
    """In the process: compile or convert what comes, line by line, and say what is wrong with it."""
    import resource

    from llguidance import LLMatcher, LLTokenizer

    from solm.runtime.grammars import matcher_error, parser_limits

    tokenizer, limits = LLTokenizer(_bytes_alone(), n_vocab=vocabulary), parser_limits()
    addressed = Path("/proc/self/statm")
    if addressed.exists():
        most = int(addressed.read_text().split()[0]) * resource.getpagesize() + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    out = os.fdopen(os.dup(1), "w")
    print("{}", file=out, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        # Also where the server has ended meanwhile.
        most = int(time.process_time() + 2 * asked["seconds"] + 2)
        resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        if "gbnf" in asked:
            try:
                found = {"error": None, "lark": lark_of(asked["gbnf"])}
            except GrammarError as error:
                found = {"error": str(error)}
        else:
            matcher = LLMatcher(tokenizer, asked["grammar"], log_level=0, limits=limits)
            if not matcher.is_error():
                matcher.compute_bitmask()
            found = {"error": matcher_error(matcher)}
        print(json.dumps(found), file=out, flush=True)


def _bytes_alone() -> str:
    """A tokenizer of all bytes, as the tokenizers package writes it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = [*pre_tokenizers.ByteLevel.alphabet(), _END]
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([_END])
    return made.to_str()


if __name__ == "__main__":
    _try_all(int(sys.argv[1]))
