"""Whether a grammar compiles in bounded time and memory: it is tried in a process of its own, which can be ended.

llguidance's limits count what its lexer and parser do, and not what putting together a regular expression or a schema
takes: some schemas of a hundred lines keep a thread busy for hours, and a thread cannot be ended. What takes that long
does not depend on the vocabulary, so that the process has one of single bytes, and little memory.
"""

import os
import signal
import time
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from solm.runtime.grammars import GrammarError, lark_of, matcher_of

_STARTED = 60.0
"""Seconds until the process has to answer for the first time."""
_MEMORY = 1 << 30
"""Bytes that it may address beyond what it does at its start."""
_GONE = (OSError, EOFError)
"""What the end of a process raises at the pipe to it."""


class GrammarTooSlowError(GrammarError):
    """A grammar that was not compiled in time."""


class GrammarTrial:
    """The process: started when it is needed first, and again after it was ended. For one thread at a time.

    vocabulary: tokens of the model, whose numbers grammars may name.
    """

    def __init__(self, vocabulary: int):
        self._vocabulary = vocabulary
        self.process: BaseProcess | None = None
        self.pipe: Connection | None = None

    def run(self, grammar: str, seconds: float) -> None:
        """Compile `Grammar.text` there.

        Raises `GrammarError` for a grammar that is malformed or too large, `GrammarTooSlowError` after `seconds`.
        """
        self._ask("compile", grammar, seconds)

    def converted(self, gbnf: str, seconds: float) -> str:
        """`solm.runtime.grammars.lark_of` there; raises as `run`."""
        return self._ask("convert", gbnf, seconds)

    def _ask(self, what: str, text: str, seconds: float) -> str:
        if seconds <= 0:
            raise GrammarTooSlowError("not compiled in time, with the grammars before it")
        if self.process is None or self.pipe is None or not self.process.is_alive():
            self._start()
        pipe = self.pipe
        assert pipe is not None
        try:
            pipe.send((what, text, seconds))
            if not pipe.poll(seconds):
                self.close()
                raise GrammarTooSlowError(f"not compiled in {seconds:.3g} s")
            wrong, made = pipe.recv()
        except _GONE:
            self.close()
            raise GrammarError(f"compiling it takes more than {_MEMORY >> 20} MiB of memory") from None
        if wrong is not None:
            raise GrammarError(wrong)
        return str(made)

    def _start(self) -> None:
        self.close()
        spawn = get_context("spawn")
        pipe, theirs = spawn.Pipe()
        process = spawn.Process(target=_answer_all, args=(theirs, self._vocabulary), daemon=True)
        process.start()
        theirs.close()
        self.process, self.pipe = process, pipe
        try:
            ready = pipe.poll(_STARTED) and pipe.recv()
        except _GONE:
            ready = False
        if not ready:
            self.close()
            raise GrammarError("the process that tries grammars does not start")

    def close(self) -> None:
        """End the process, whatever it does."""
        process, pipe = self.process, self.pipe
        self.process = self.pipe = None
        if process is not None and pipe is not None:
            process.kill()
            process.join()
            pipe.close()


def _answer_all(pipe: Connection, vocabulary: int) -> None:
    """In the process: compile or convert what comes, and say what is wrong with it and what was made."""
    import resource

    from llguidance import LLTokenizer

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends this process
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    tokenizer = LLTokenizer(_bytes_alone(), n_vocab=vocabulary)
    addressed = Path("/proc/self/statm")
    if addressed.exists():
        most = int(addressed.read_text().split()[0]) * resource.getpagesize() + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    pipe.send(True)
    with suppress(*_GONE):  # where the server has ended
        while True:
            what, text, seconds = pipe.recv()
            # Also where the server has ended meanwhile.
            most = int(time.process_time() + 2 * seconds + 2)
            resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))
            try:
                if what == "convert":
                    pipe.send((None, lark_of(text)))
                else:
                    matcher_of(tokenizer, text)
                    pipe.send((None, ""))
            except GrammarError as error:
                pipe.send((str(error), ""))


def _bytes_alone() -> str:
    """A tokenizer of all bytes, as the tokenizers package writes it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    end = "</s>"
    letters = [*pre_tokenizers.ByteLevel.alphabet(), end]
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([end])
    return made.to_str()
