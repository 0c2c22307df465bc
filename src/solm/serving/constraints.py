"""What replies have to match: the grammar that a request asks for, compiled beside decoding and within limits."""

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import BoundedSemaphore, Lock
from typing import Any

from solm.runtime.controlled import ControlledModel
from solm.runtime.grammar_trial import GrammarTooSlowError, GrammarTrial
from solm.runtime.grammars import Constraint, Grammar, GrammarError, checked_schema, quoted
from solm.serving.errors import ApiError
from solm.serving.schema import ChatRequest, CompletionRequest, NamedTool, ResponseFormat, StructuredOutputs, Tool
from solm.serving.settings import COMPILE_SECONDS, MAX_TOOL_CALLS
from solm.serving.tools import CallForm

_KEPT = 128
"""Grammars that stay compiled."""
_MOST_WAITING = 16
"""Requests that wait for a grammar at once."""
_AT_ONCE = 2
"""Grammars that are compiled at once, so that one that takes long does not hold up all others."""


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
        self, request: ChatRequest | CompletionRequest, tools: Sequence[Tool] = (), calls: "CallGrammars | None" = None
    ) -> Constraint | None:
        """What the reply to a request, which offers `tools` that the model calls as `calls` says, has to match; None:
        nothing. Takes up to three times `COMPILE_SECONDS`, two thirds of it in waiting for others: call it in a
        thread.

        Raises `ApiError` for a grammar that is malformed, too large, or not compiled in time, and where many wait.
        """
        chosen = wanted(request, tools, calls)
        if chosen is None:
            return None
        field, make = chosen
        if not self._room.acquire(blocking=False):
            raise ApiError(429, "many grammars are being compiled; try again later", field, "queue_full")
        try:
            # Longer than a grammar that explodes has, so that who comes just after it is not refused.
            trial = self._idle.get(timeout=2 * COMPILE_SECONDS)
        except Empty:
            self._room.release()
            raise ApiError(429, "other grammars are being compiled; try again later", field, "queue_full") from None
        try:
            check = Check(self._lm, self._kept, self._lock, trial, time.monotonic() + COMPILE_SECONDS)
            return check(make(check)).copy(field)
        except GrammarTooSlowError:
            message = f"{field}: not compiled in {COMPILE_SECONDS:g} s"
            raise ApiError(400, message, field, "grammar_too_slow") from None
        except GrammarError as error:
            raise ApiError(400, f"{field}: {error}", field, "invalid_grammar") from error
        finally:
            self._idle.put(trial)
            self._room.release()


@dataclass(frozen=True)
class Check:
    """Compiles a grammar and the parts that it is made of, each tried in the process of `trial` before, all of them
    until `end`, seconds of a monotonic clock. kept: what was compiled lately, by text; changed while `lock` is held."""

    lm: ControlledModel
    kept: OrderedDict[str, Constraint]
    lock: Lock
    trial: GrammarTrial
    end: float

    def __call__(self, grammar: Grammar) -> Constraint:
        """A part, compiled. Raises `GrammarError`."""
        with self.lock:
            compiler, constraint = self.lm.compiler, self.kept.get(grammar.text)
        if constraint is None:
            self.trial.run(grammar.text, self.end - time.monotonic())
            constraint = compiler.compile(grammar)
        with self.lock:
            self.kept[grammar.text] = constraint
            self.kept.move_to_end(grammar.text)
            if len(self.kept) > _KEPT:
                self.kept.popitem(last=False)
        return constraint

    def convert(self, gbnf: str) -> str:
        """A grammar in GBNF as Lark. Raises `GrammarError`."""
        return self.trial.converted(gbnf, self.end - time.monotonic())


Make = Callable[[Check], Grammar]


@dataclass(frozen=True)
class CallGrammars:
    """Builds grammars for one model. mark: the token before a call, where it is no text (see `hidden_token`)."""

    form: CallForm
    mark: int | None

    def required(self, check: Check, tools: Sequence[Tool], several: bool) -> Grammar:
        """Of replies that are calls alone."""
        return self._grammar(check, tools, "calls", several)

    def beside(self, check: Check, tools: Sequence[Tool], several: bool, content: Grammar) -> Grammar:
        """Of replies that are calls, or have the format `content`, made of a JSON schema."""
        schema = json.loads(content.text)["grammars"][0]["json_schema"]
        return self._grammar(check, tools, "content | calls", several, f"content: %json {json.dumps(schema)}")

    def free(self, check: Check, tools: Sequence[Tool], several: bool) -> Grammar:
        """Of replies that are text, in which the model calls tools where it likes; each call fits its tool."""
        form = self.form
        if form.bare:
            # A reply that begins with a brace is a call; no other text has one there.
            return self._grammar(check, tools, "PLAIN | calls", several, "PLAIN: /([^{ \\n\\r\\t](.|\\n)*)?/")
        start, inside = "called* TEXT" if several else "TEXT | called", "TEXT: /(.|\\n)*/"
        if self.mark is not None:
            lines = [inside, f"called: TEXT {self._text(form.begins)} block"]
        else:
            lines = [inside, f"head[lazy]: TEXT {quoted(form.begins)}", "called: head block"]
        return self._grammar(check, tools, start, several, *lines)

    def _grammar(self, check: Check, tools: Sequence[Tool], start: str, several: bool, *more: str) -> Grammar:
        form, several = self.form, several and not self.form.bare
        again = f" ({self._text(form.between)} call){{0,{MAX_TOOL_CALLS - 1}}}" if several else ""
        first = form.first.removeprefix(form.begins)
        # Without forcing, the model may write what must follow in its own tokens, such as the one that begins a call.
        lines = ['%llguidance {"no_forcing": true}', f"start: {start}"]
        lines += [f"calls: {self._text(form.first.removesuffix(first))} block", *more]
        lines += [f"block: {self._text(first)} call{again} {self._text(form.last)}"]
        lines += ["call: " + " | ".join(f"tool_{number}" for number in range(len(tools)))]
        lines += [f"tool_{number}: {rule}" for number, rule in enumerate(self._tools(check, tools))]
        return Grammar.trusted("\n".join(lines))

    def _text(self, text: str) -> str:
        """Literal text, in which the mark may be a token."""
        parts = [text] if self.mark is None else text.split(self.form.begins)
        return f" <[{self.mark}]> ".join(quoted(part) if part else "" for part in parts)

    def _tools(self, check: Check, tools: Sequence[Tool]) -> Iterator[str]:
        """A call by tool. Raises `ApiError` that says which tool's parameters cannot be a grammar."""
        for number, tool in enumerate(tools):
            strict = bool(tool.function.strict)
            parameters = tool.function.parameters or {"properties": {}, "additionalProperties": False}
            place = f"tools.{number}.function.parameters"
            try:
                if parameters.get("type", "object") != "object":
                    raise GrammarError(f"the type must be object, got {parameters['type']!r}"[:200])
                schema = checked_schema({"type": "object"} | parameters, strict)
                check(Grammar.json_schema(schema, strict))
            except GrammarError as error:
                code = "grammar_too_slow" if isinstance(error, GrammarTooSlowError) else "invalid_grammar"
                raise ApiError(400, f"{place}: {error}", place, code) from error
            before = quoted(f'{{"name": "{tool.function.name}", "{self.form.field}": ')
            yield f'{before} %json {json.dumps(schema, ensure_ascii=False)} "}}"'


def offered(request: ChatRequest) -> list[Tool]:
    """The tools that the reply may call. Raises `ApiError` where those or the choice among them contradict."""
    for name in ("tool_choice", "parallel_tool_calls"):
        if getattr(request, name) is not None and request.tools is None:
            raise ApiError(400, f"{name} needs tools", name)
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
    format = _format(request.response_format)
    outputs = None if request.structured_outputs is None else _outputs(request.structured_outputs)
    if outputs is not None:
        if format is not None or tools:
            other = "response_format" if format is not None else "tools"
            raise ApiError(400, f"structured_outputs and {other} do not go together", "structured_outputs")
        return outputs
    if not tools or not isinstance(request, ChatRequest):
        return format
    assert calls is not None
    choice = request.tool_choice or "auto"
    several = request.parallel_tool_calls is not False and not isinstance(choice, NamedTool)
    if choice != "auto":
        if isinstance(choice, NamedTool):
            tools = [tool for tool in tools if tool.function.name == choice.function.name]
        return "tools", lambda check: calls.required(check, tools, several)
    if format is not None:
        field, make = format
        return field, lambda check: calls.beside(check, tools, several, make(check))
    if several and not any(tool.function.strict for tool in tools):
        return None
    return "tools", lambda check: calls.free(check, tools, several)


def _format(given: ResponseFormat | None) -> tuple[str, Make] | None:
    if given is None:
        return None
    schema = given.json_schema
    if schema is not None and given.type != "json_schema":
        where = "response_format.json_schema"
        raise ApiError(400, f"{where} needs the type json_schema, not {given.type}", where)
    if given.type == "text":
        return None
    if given.type == "json_object":
        return "response_format", lambda _: Grammar.json_object()
    if schema is None:
        where = "response_format.json_schema"
        raise ApiError(400, f"{where} is missing", where, "missing_required_parameter")
    return "response_format.json_schema.schema", lambda _: Grammar.json_schema(schema.schema_, bool(schema.strict))


def _outputs(given: StructuredOutputs) -> tuple[str, Make]:
    names = [name for name in StructuredOutputs.model_fields if getattr(given, name) not in (None, False)]
    if len(names) != 1:
        message = f"structured_outputs needs exactly one of its fields, got {len(names)}"
        raise ApiError(400, message, "structured_outputs")
    makes: dict[str, Callable[[Any, Check], Grammar]] = {
        "json_": lambda schema, _: Grammar.json_schema(schema), "json_object": lambda *_: Grammar.json_object(),
        "regex": lambda pattern, _: Grammar.regex(pattern), "choice": lambda texts, _: Grammar.choice(texts),
        "grammar": lambda text, check: Grammar.lark(text, check.convert),
    }  # fmt: skip
    (name,) = names
    return f"structured_outputs.{name.strip('_')}", lambda check: makes[name](getattr(given, name), check)
