"""From what requests ask of a reply to constraints: which grammar, compiled beside decoding and within limits."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from threading import BoundedSemaphore, Lock
from typing import Any

from solm.runtime.controlled import ControlledModel
from solm.runtime.grammar_trial import GrammarTooSlowError, GrammarTrial
from solm.runtime.grammars import Constraint, Grammar, GrammarError
from solm.serving.errors import ApiError
from solm.serving.schema import ChatRequest, CompletionRequest, NamedTool, ResponseFormat, StructuredOutputs, Tool
from solm.serving.settings import COMPILE_SECONDS
from solm.serving.tools import CallGrammars, Check

_KEPT = 128
"""Grammars that stay compiled."""
_MOST_WAITING = 16
"""Requests that wait for a grammar at once."""
_AT_ONCE = 2
"""Grammars that are compiled at once, so that one that takes long does not hold up all others."""
Make = Callable[[Check], Grammar]


class Constraints:
    """Compiles the grammars of requests beside decoding, at most `_AT_ONCE` at a time, each in bounded time.

    What grammars need is made when the first of them comes: the library's form of the vocabulary, during which every
    other thread stops, and processes in which grammars are tried.
    """

    def __init__(self, lm: ControlledModel):
        self._lm, self._kept, self._lock = lm, OrderedDict[str, Constraint](), Lock()
        self._all = [GrammarTrial(lm.shapes.vocabulary) for _ in range(_AT_ONCE)]
        self._idle = SimpleQueue[GrammarTrial]()
        for trial in self._all:
            self._idle.put(trial)
        self._room = BoundedSemaphore(_MOST_WAITING)

    def close(self) -> None:
        """End the processes; grammars in the making fail."""
        for trial in self._all:
            trial.close()

    def of(
        self,
        request: ChatRequest | CompletionRequest,
        tools: Sequence[Tool] = (),
        calls: CallGrammars | None = None,
    ) -> Constraint | None:
        """What the reply to a request, which offers `tools` that the model calls as `calls` says, has to match; None:
        nothing. Takes up to three times `COMPILE_SECONDS`, two thirds of it in waiting for others: call it in a
        thread.

        Raises `ApiError` for a grammar that is malformed, too large, or not compiled in time, and where many wait.
        """
        found = wanted(request, tools, calls)
        if found is None:
            return None
        field, make = found
        if not self._room.acquire(blocking=False):
            raise ApiError(429, "many grammars are being compiled; try again later", field, "queue_full")
        try:
            # Longer than a grammar that explodes has, so that who comes just after it is not refused.
            trial = self._idle.get(timeout=2 * COMPILE_SECONDS)
        except Empty:
            self._room.release()
            raise ApiError(429, "other grammars are being compiled; try again later", field, "queue_full") from None
        try:
            return self._made(make, trial).copy(field)
        except GrammarTooSlowError:
            message = f"{field}: not compiled in {COMPILE_SECONDS:g} s"
            raise ApiError(400, message, field, "grammar_too_slow") from None
        except GrammarError as error:
            raise ApiError(400, f"{field}: {error}", field, "invalid_grammar") from error
        finally:
            self._idle.put(trial)
            self._room.release()

    def _made(self, make: Make, trial: GrammarTrial) -> Constraint:
        """A grammar, and those that it is checked by."""
        check = _Timed(self, trial)
        return check(make(check))

    def compiled(self, grammar: Grammar, trial: GrammarTrial, seconds: float) -> Constraint:
        """A grammar that is kept, or that compiles in `seconds` in the process of `trial`. Raises `GrammarError`."""
        with self._lock:
            compiler, known = self._lm.compiler, self._kept.get(grammar.text)
        if known is None:
            trial.run(grammar.text, seconds)
            known = compiler.compile(grammar)
        with self._lock:
            self._kept[grammar.text] = known
            self._kept.move_to_end(grammar.text)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return known


class _Timed:
    """A `Check` whose parts have `COMPILE_SECONDS` together."""

    def __init__(self, constraints: Constraints, trial: GrammarTrial):
        self._constraints, self._trial, self._end = constraints, trial, time.monotonic() + COMPILE_SECONDS

    def __call__(self, grammar: Grammar) -> Constraint:
        return self._constraints.compiled(grammar, self._trial, self._end - time.monotonic())

    def convert(self, gbnf: str) -> str:
        return self._trial.converted(gbnf, self._end - time.monotonic())


def offered(request: ChatRequest) -> list[Tool]:
    """The tools that the reply may call. Raises `ApiError` where those or the choice among them contradict."""
    for field in ("tool_choice", "parallel_tool_calls"):
        if getattr(request, field) is not None and request.tools is None:
            raise ApiError(400, f"{field} needs tools", field)
    tools, choice = request.tools or [], request.tool_choice
    names = [tool.function.name for tool in tools]
    for number, name in enumerate(names):
        if name in names[:number]:
            where = f"tools.{number}.function.name"
            raise ApiError(400, f"{where}: {name!r} is there twice", where, "invalid_value")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise ApiError(400, f"tool_choice: {choice.function.name!r} is not among the tools", "tool_choice")
    return [] if choice == "none" else tools


def wanted(
    request: ChatRequest | CompletionRequest, tools: Sequence[Tool], calls: CallGrammars | None
) -> tuple[str, Make] | None:
    """The field of a request that asks for a grammar, and what makes that; None where none does. calls: where there
    are `tools`, how the model calls them.

    Raises `ApiError` for fields that do not go together.
    """
    asked = _format(request.response_format)
    outputs = None if request.structured_outputs is None else _outputs(request.structured_outputs)
    if outputs is not None:
        if asked is not None or tools:
            other = "response_format" if asked is not None else "tools"
            raise ApiError(400, f"structured_outputs and {other} do not go together", "structured_outputs")
        return outputs
    if not tools or not isinstance(request, ChatRequest):
        return asked
    assert calls is not None
    choice = request.tool_choice or "auto"
    several = request.parallel_tool_calls is not False and not isinstance(choice, NamedTool)
    if choice != "auto":
        if isinstance(choice, NamedTool):
            tools = [tool for tool in tools if tool.function.name == choice.function.name]
        return "tools", lambda check: calls.required(check, tools, several)
    if asked is not None:
        field, make = asked
        return field, lambda check: calls.beside(check, tools, several, make(check))
    if several and not any(tool.function.strict for tool in tools):
        return None
    return "tools", lambda check: calls.free(check, tools, several)


def _format(asked: ResponseFormat | None) -> tuple[str, Make] | None:
    if asked is None:
        return None
    schema = asked.json_schema
    if schema is not None and asked.type != "json_schema":
        where = "response_format.json_schema"
        raise ApiError(400, f"{where} needs the type json_schema, not {asked.type}", where)
    if asked.type == "text":
        return None
    if asked.type == "json_object":
        return "response_format", lambda _: Grammar.json_object()
    if schema is None:
        where = "response_format.json_schema"
        raise ApiError(400, f"{where} is missing", where, "missing_required_parameter")
    return "response_format.json_schema.schema", lambda _: Grammar.json_schema(schema.schema_, bool(schema.strict))


def _outputs(asked: StructuredOutputs) -> tuple[str, Make]:
    given = [name for name in StructuredOutputs.model_fields if getattr(asked, name) not in (None, False)]
    if len(given) != 1:
        raise ApiError(
            400, f"structured_outputs needs exactly one of its fields, got {len(given)}", "structured_outputs"
        )
    makes: dict[str, Callable[[Any, Check], Grammar]] = {
        "json_": lambda schema, _: Grammar.json_schema(schema), "json_object": lambda *_: Grammar.json_object(),
        "regex": lambda pattern, _: Grammar.regex(pattern), "choice": lambda texts, _: Grammar.choice(texts),
        "grammar": lambda text, check: Grammar.lark(text, check.convert),
    }  # fmt: skip
    (name,) = given
    return f"structured_outputs.{name.strip('_')}", lambda check: makes[name](getattr(asked, name), check)
