"""`solm chat`."""

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from solm.cli import checks
from solm.cli.budget_check import checked_budget
from solm.cli.options import (
    DECIDERS,
    DEFAULT_MODEL,
    BackendOption,
    BudgetOption,
    DeciderOption,
    DtypeOption,
    KvCacheOption,
    ModelOption,
    PrecisionOption,
    RevisionOption,
    SeedOption,
    TimingsOption,
    TrustOption,
)
from solm.cli.sampling_options import (
    FrequencyOption,
    MinPOption,
    PresenceOption,
    RepetitionOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    sampling,
)
from solm.cli.streams import reason
from solm.core.errors import BudgetError, ContextLengthError, DataError, SolmError

if TYPE_CHECKING:
    from solm.cli.talk import Talk

_HELP = """\
/budget 0.7       set the budget of later replies, in any form of --budget: speed=1.3, mlp=0.8; without one: dense
/policy dense     choose what decides: policy (the trained one), dense, static, random, a folder, hub id or builtin:...
/system Be brief  set the system message, and start a new conversation
/reset            start a new conversation
/help             show these lines
/quit             quit, as Ctrl-D does; Ctrl-C stops a reply"""


def chat(
    model: ModelOption = DEFAULT_MODEL,
    policy: DeciderOption = None,
    budget: BudgetOption = None,
    system: Annotated[str | None, typer.Option(help="System message, for models with a chat template.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply.", min=1)] = 256,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    min_p: MinPOption = None,
    repetition_penalty: RepetitionOption = None,
    presence_penalty: PresenceOption = None,
    frequency_penalty: FrequencyOption = None,
    seed: SeedOption = 0,
    dtype: DtypeOption = "auto",
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    kv_cache_dtype: KvCacheOption = None,
    timings: TimingsOption = None,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Talk with a model, and change the budget between replies. Type /help for the commands.

    \b
    Examples:
      solm chat --policy builtin:smollm2-135m-cpu --budget attention=0.4,mlp=0.8
      echo "Why is the sky blue?" | solm chat --policy static
    """
    from solm.cli.output import complain, repacking, say
    from solm.cli.talk import Talk
    from solm.core.budget import Budget, BudgetRequest
    from solm.core.errors import check_unicode
    from solm.runtime.load import load

    options = sampling(
        temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty, frequency_penalty=frequency_penalty,
    )  # fmt: skip
    checks.backend(backend, precision, kv_cache_dtype, dtype)
    config = checks.model_config(model, revision, trust_remote_code, backend=backend)
    checks.room(config, max_new_tokens, "--max-new-tokens")
    tokenizer = checks.tokenizer(model, revision, trust_remote_code, system)
    with checks.option("--budget"):
        if policy == "dense" and BudgetRequest.parse(budget).value not in (1.0, Budget()):
            raise BudgetError(f"{budget} needs another --policy than dense, which spends everything")
    trained = None if policy in DECIDERS else checks.trained_policy(policy, config)
    known = checks.step_times(timings, model, backend)
    checked_budget(budget, config, trained, None, known)
    if policy is None:
        checks.mention_policy(config)
    with repacking() as progress:
        lm = load(
            model, trained, tokenizer=tokenizer, dtype=dtype, backend=backend, precision=precision,
            kv_cache_dtype=kv_cache_dtype, timings=timings, revision=revision, trust_remote_code=trust_remote_code,
            progress=progress,
        )  # fmt: skip
    talk = Talk(lm, policy if policy in DECIDERS else None, {"seed": seed, "max_new_tokens": max_new_tokens, **options})
    talk.start(system)
    with checks.option("--budget"):
        talk.set_budget(budget)
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
    from solm.cli.output import complain, say

    name, _, rest = line.partition(" ")
    rest = rest.strip()
    try:
        if name == "/budget":
            talk.set_budget(rest or None)
        elif name == "/policy":
            if not rest:
                raise SolmError("give what decides, such as: /policy dense")
            talk.set_policy(rest)
        elif name == "/system":
            talk.start(rest)
        elif name == "/reset":
            talk.start(talk.system)
        elif name == "/help":
            say(_HELP)
        else:
            complain(f"unknown command {line!r}; /help lists them")
            return
    except SolmError as error:
        complain(f"{name}: {error}")
        return
    if name in ("/budget", "/policy"):
        say(talk.setting)
    elif name != "/help":
        say("a new conversation")


def _answer(talk: "Talk", line: str) -> None:
    """Print the reply to `line` and what it cost. Ctrl-C ends the reply; a second one acts as usual."""
    from solm.cli import spent
    from solm.cli.generate import paint
    from solm.cli.output import complain, say
    from solm.core.interrupt import SIGTERM_CODE, signals

    moments: list[float] = []
    coloured = sys.stdout.isatty()
    with signals("") as stop:
        try:
            reply = talk.stream(line)
            for token in reply:
                moments.append(time.perf_counter())
                text = "" if token.id in talk.special else token.text
                print(paint(text, token.cost) if coloured else text, end="", flush=True)
                if stop:
                    reply.close()
                    break
        except SolmError as error:
            anew = isinstance(error, ContextLengthError) and talk.fits_alone(line)
            complain(f"{error}; /reset starts a new conversation" if anew else str(error))
            return
    print()
    done = talk.reply
    assert done is not None
    told = [spent.speed(moments)]
    if done.compute.requested["net"] < 1:
        for line in spent.lines(talk.lm, talk.budget, done, talk.read + len(moments) // 2):
            say(line)
        told.append(str(spent.saved(talk.lm, done, moments, talk.read)))
    say(f"[{'; '.join(told)}{'; stopped' if stop else ''}]")
    if SIGTERM_CODE in stop:
        raise typer.Exit(SIGTERM_CODE)
