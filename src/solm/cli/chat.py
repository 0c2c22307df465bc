"""`solm chat`."""

import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from solm.cli.generate import printed, show_facts
from solm.cli.options import ModelOptions, ReplyOptions, mention_policy
from solm.cli.output import Progress, complain, read_weights, say
from solm.core.errors import ContextLengthError, DataError, SolmError, check_unicode

if TYPE_CHECKING:
    import numpy as np

    from solm.backends.session import Session
    from solm.core.budget import Terms
    from solm.runtime.language_model import LanguageModel, Stream
    from solm.runtime.reply import Reply, Token

_MEMORY = 512e6
"""Bytes of the conversation's keys and values that are kept."""
_HELP = """\
/budget 0.7       set the budget of later replies, in any form of --budget: speed=1.3, mlp=0.8; without one: dense
/system Be brief  set the system message, and start a new conversation
/reset            start a new conversation
/help             show these lines
/quit             quit, as Ctrl-D does; Ctrl-C stops a reply"""


class Talk:
    """A conversation, and what the next reply is generated with. What the last prompt shares with the next one is not
    read again.

    generation: length, seed and sampling options of `LanguageModel.stream`.
    """

    def __init__(self, lm: "LanguageModel", policy: str | None, generation: dict[str, Any]):
        self._told = generation.get("chat_template_kwargs")
        self.generation = {name: value for name, value in generation.items() if name != "chat_template_kwargs"}
        self.lm, self.policy = lm, policy
        self.tokenizer: Any = lm.tokenizer
        self.budget: str | None = None
        self._stream: Stream | None = None
        self.read = 0
        """Tokens of the last prompt, with the conversation before it."""
        self.start(None)

    @property
    def setting(self) -> str:
        """The policy and the budget of the next reply, and where step times are measured what it comes to."""
        from solm.core.budget import in_time

        if self.budget is None:
            return "dense"
        terms = self._terms(self.lm, self.policy, self.budget)
        time = f": {in_time(terms)}" if "time" in terms else ""
        return f"policy {self.policy or ('policy' if self.lm.trained else 'static')}, budget {self.budget}{time}"

    @property
    def reply(self) -> "Reply | None":
        """What has been generated of the last reply; None where it could not begin."""
        return None if self._stream is None else self._stream.reply

    def start(self, system: str | None) -> str:
        """Begin anew, after a system message or without one. Returns words about it, as `set_budget` does."""
        from solm.runtime.prompts import check_system

        check_system(self.tokenizer, system or None)
        self.system = system or None
        self.messages = [{"role": "system", "content": system}] if system else []
        self._forget()
        return "a new conversation"

    def set_budget(self, budget: str | None) -> str:
        """Another budget; None: dense. One that is given ends the policy `dense`, which spends everything.

        Raises `BudgetError` for one that cannot be met, and keeps the old one.
        """
        policy = None if self.policy == "dense" and budget is not None else self.policy
        with Progress() as progress:
            lm = self.lm if budget is None else self.lm.timed_for(budget, progress.show)
        self._terms(lm, policy, budget)
        self.policy, self.budget = policy, budget
        if lm is not self.lm:
            self.lm = lm
            self._forget()  # keys and values belong to the policy's sparsity
        return self.setting

    def stream(self, line: str) -> "Generator[Token]":
        """The reply to `line`, token by token; what was generated of it becomes part of the conversation.

        Raises `ContextLengthError` where the conversation has become too long, which then stays as it was.
        """
        from solm.runtime.language_model import check_length
        from solm.runtime.prompts import encode

        self.messages.append({"role": "user", "content": line})
        self._stream = None
        try:
            plain = "\n".join(message["content"] for message in self.messages) + "\n"
            conversation = self.messages if self.tokenizer.chat_template else plain
            ids = encode(self.tokenizer, conversation, told=self._told)
            self.read = ids.shape[1]
            check_length(self.read, self.generation["max_new_tokens"], self.lm.context)
            self._stream = self.lm.stream(
                ids, budget=self.budget, policy=self.policy, session=self._session(ids), **self.generation
            )
            yield from self._stream
        finally:
            if self.reply is not None and self.reply.trace.ids:
                self.messages.append({"role": "assistant", "content": self.reply.text})
            else:
                self.messages.pop()

    def _terms(self, lm: "LanguageModel", policy: str | None, budget: str | None) -> "Terms":
        """The budget of the next reply in all units that are measured. Raises `BudgetError` where it cannot be met."""
        seen = self.read + self.generation["max_new_tokens"] // 2
        return lm.budgets(lm.decider(policy, budget)).resolve(budget, seen).terms

    def _forget(self) -> None:
        from solm.runtime.prefixes import PrefixCache

        self._prefixes = PrefixCache(_MEMORY, self.lm.sparsity.page_size)

    def _session(self, ids: "np.ndarray") -> "Session":
        """A session that has read ids [1, C] but for the last token, as far as possible out of the last prompt's."""
        capacity = ids.shape[1] + self.generation["max_new_tokens"]
        session = self._prefixes.find(ids[0], capacity) or self.lm.session(capacity)
        seen = session.length(0) if session.rows else 0
        if seen < ids.shape[1] - 1:
            session.prefill(ids[:, seen:-1])
        self._prefixes.keep(ids[0, :-1], session)
        return session


def chat(model: ModelOptions, options: ReplyOptions) -> None:
    """Talk with a model, and change the budget between replies. Type /help for the commands.

    \b
    Examples:
      solm chat --policy builtin:smollm2-135m-cpu --budget attention=0.4,mlp=0.8
      echo "Why is the sky blue?" | solm chat --policy static
    """
    generation = options.generation()
    prepared = options.prepare(model)
    options.check_budget(prepared, 0)
    if options.policy is None:
        mention_policy(prepared)
    lm = read_weights(prepared)
    talk = Talk(lm, options.decider, generation)
    talk.start(options.system)
    talk.set_budget(options.budget)
    say(f"{lm.name} on {lm.backend.name}, {talk.setting}. /help lists the commands.")
    for line in _lines(sys.stdin.isatty()):
        try:
            check_unicode(line, "this line")
        except DataError as error:
            complain(str(error))
            continue
        if not line.startswith("/"):
            _answer(talk, line)
        elif line.split()[0] in ("/quit", "/exit"):
            return
        else:
            _obey(talk, line)


def _lines(terminal: bool) -> Iterator[str]:
    """What is typed, line by line, without empty lines; from a pipe, its lines."""
    if terminal:
        import readline  # noqa: F401  # arrow keys and history in input()
    while True:
        try:
            line = input("> ") if terminal else sys.stdin.readline()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n/quit or Ctrl-D ends the program")
            continue
        except OSError as error:
            raise SolmError(f"cannot read standard input: {error.strerror or error}") from error
        if not terminal and not line:
            return
        if line.strip():
            yield line.strip()


def _obey(talk: Talk, line: str) -> None:
    """Carry out a command."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    commands: dict[str, Callable[[], str]] = {
        "/budget": lambda: talk.set_budget(rest or None),
        "/system": lambda: talk.start(rest),
        "/reset": lambda: talk.start(talk.system),
        "/help": lambda: _HELP,
    }
    if name not in commands:
        complain(f"unknown command {line!r}; /help lists them")
        return
    try:
        say(commands[name]())
    except SolmError as error:
        complain(f"{name}: {error}")


def _answer(talk: Talk, line: str) -> None:
    """Print the reply to `line` and what it cost. Ctrl-C ends the reply; a second one acts as usual."""
    moments: list[float] = []
    with _noting_interrupts() as stop:
        try:
            reply = talk.stream(line)
            for _ in printed(reply, talk.tokenizer, moments):
                if stop:
                    reply.close()
        except SolmError as error:
            anew = "; /reset starts a new conversation" if isinstance(error, ContextLengthError) else ""
            complain(f"{error}{anew}")
            return
    print()
    done = talk.reply
    assert done is not None
    show_facts(talk.lm, talk.budget, done, moments, talk.read, "; stopped" if stop else "")


@contextmanager
def _noting_interrupts() -> Iterator[list[int]]:
    """A list that the first Ctrl-C appends to; a second one acts as usual."""
    stop: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: object) -> None:
        stop.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
