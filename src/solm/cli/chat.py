"""`solm chat`."""

import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import typer

from solm.cli.generate import paint
from solm.cli.options import ModelOptions, ReplyOptions, mention_policy
from solm.cli.output import complain, describe_speed, read_weights, reason, say, show_cost
from solm.core.errors import ContextLengthError, DataError, SolmError, argument

if TYPE_CHECKING:
    from solm.cli.talk import Talk

_HELP = """\
/budget 0.7       set the budget of later replies, in any form of --budget: speed=1.3, mlp=0.8; without one: dense
/policy dense     choose what decides: policy (the trained one), dense, static, random, a folder, hub id or builtin:...
/system Be brief  set the system message, and start a new conversation
/reset            start a new conversation
/help             show these lines
/quit             quit, as Ctrl-D does; Ctrl-C stops a reply"""


def chat(model: ModelOptions, options: ReplyOptions) -> None:
    """Talk with a model, and change the budget between replies. Type /help for the commands.

    \b
    Examples:
      solm chat --policy builtin:smollm2-135m-cpu --budget attention=0.4,mlp=0.8
      echo "Why is the sky blue?" | solm chat --policy static
    """
    from solm.cli.talk import Talk
    from solm.core.errors import check_unicode

    generation = options.generation()
    prepared = options.prepare(model)
    with argument("budget"):
        prepared.budgets().budget(options.budget, options.max_new_tokens // 2)
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
            raise SolmError(f"cannot read standard input: {reason(error)}") from error
        if not terminal and not line:
            return
        if line.strip():
            yield line.strip()


def _obey(talk: "Talk", line: str) -> None:
    """Carry out a command."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    commands: dict[str, Callable[[], object]] = {
        "/budget": lambda: talk.set_budget(rest or None),
        "/policy": lambda: talk.set_policy(rest),
        "/system": lambda: talk.start(rest),
        "/reset": lambda: talk.start(talk.system),
        "/help": lambda: say(_HELP),
    }
    if name not in commands:
        complain(f"unknown command {line!r}; /help lists them")
        return
    try:
        commands[name]()
    except SolmError as error:
        complain(f"{name}: {error}")
    else:
        if name != "/help":
            say(talk.setting if name in ("/budget", "/policy") else "a new conversation")


def _answer(talk: "Talk", line: str) -> None:
    """Print the reply to `line` and what it cost. Ctrl-C ends the reply; a second one acts as usual."""
    from solm.core.interrupt import SIGTERM_CODE, signals

    moments: list[float] = []
    coloured, special = sys.stdout.isatty(), set(talk.tokenizer.all_special_ids)
    with signals("") as stop:
        try:
            reply = talk.stream(line)
            for token in reply:
                moments.append(time.perf_counter())
                text = "" if token.id in special else token.text
                print(paint(text, token.cost) if coloured else text, end="", flush=True)
                if stop:
                    reply.close()
                    break
        except SolmError as error:
            anew = "; /reset starts a new conversation" if isinstance(error, ContextLengthError) else ""
            complain(f"{error}{anew}")
            return
    print()
    done = talk.reply
    assert done is not None
    words = [describe_speed(moments)]
    if done.compute.requested["net"] < 1:
        words.append(str(show_cost(talk.lm, talk.budget, done, moments, talk.read)))
    say(f"[{'; '.join(words)}{'; stopped' if stop else ''}]")
    if SIGTERM_CODE in stop:
        raise typer.Exit(SIGTERM_CODE)
