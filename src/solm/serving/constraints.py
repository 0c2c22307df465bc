"""From what requests ask of a reply to constraints: which grammar, compiled beside decoding and within limits."""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from threading import BoundedSemaphore
from typing import Any

from solm.core.errors import SolmError
from solm.runtime.constraints import Constraint
from solm.runtime.controlled import ControlledModel
from solm.runtime.grammars import Grammar, GrammarError, checked_schema, quoted
from solm.serving.conversation import CALL_BEGINS, CALL_ENDS
from solm.serving.failures import ApiError
from solm.serving.requests import ChatRequest, CompletionRequest
from solm.serving.settings import COMPILE_SECONDS, MAX_TOOL_CALLS
from solm.serving.structure import NamedTool, ResponseFormat, StructuredOutputs, Tool

_KEPT = 128
"""Grammars that stay compiled."""
_MOST_WAITING = 16
"""Requests that wait for a grammar at once."""
Check = Callable[[Grammar], Constraint]
Make = Callable[[Check], Grammar]


class Constraints:
    """Compiles the grammars of requests in a thread of its own, one after another."""

    def __init__(self, lm: ControlledModel):
        self._lm, self._kept = lm, OrderedDict[str, Constraint]()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="solm-grammar")
        self._room = BoundedSemaphore(_MOST_WAITING)

    def prepare(self) -> None:
        """What takes a second for a large vocabulary and stops every other thread meanwhile: before the first request.
        A model for which there are no grammars refuses the requests that need one."""
        try:
            _ = self._lm.compiler
        except SolmError:
            return

    def of(self, request: ChatRequest | CompletionRequest, tools: Sequence[Tool] = ()) -> Constraint | None:
        """What the reply to a request, which offers `tools`, has to match; None: nothing.

        Raises `ApiError` for a grammar that is malformed, too large, or not compiled in time, and where many wait.
        """
        found = wanted(request, tools)
        if found is None:
            return None
        field, make = found
        if not self._room.acquire(blocking=False):
            raise ApiError(429, "many grammars are being compiled; try again later", field, "queue_full")
        try:
            compiling = self._thread.submit(lambda: self._compiled(make(self._compiled)))
            return compiling.result(COMPILE_SECONDS).copy(field)
        except TooLate:
            if compiling.cancel():
                raise ApiError(429, "other grammars are being compiled; try again later", field, "queue_full") from None
            raise ApiError(400, f"{field}: not compiled in {COMPILE_SECONDS:g} s", field, "grammar_too_slow") from None
        except GrammarError as error:
            raise ApiError(400, f"{field}: {error}", field, "invalid_grammar") from error
        finally:
            self._room.release()

    def _compiled(self, grammar: Grammar) -> Constraint:
        known = self._kept.get(grammar.text)
        if known is None:
            known = self._kept[grammar.text] = self._lm.compiler.compile(grammar)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(grammar.text)
        return known


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


def wanted(request: ChatRequest | CompletionRequest, tools: Sequence[Tool]) -> tuple[str, Make] | None:
    """The field of a request that asks for a grammar, and what makes that; None where none does.

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
    choice = request.tool_choice or "auto"
    several = request.parallel_tool_calls is not False and not isinstance(choice, NamedTool)
    if choice != "auto":
        if isinstance(choice, NamedTool):
            tools = [tool for tool in tools if tool.function.name == choice.function.name]
        return "tools", lambda check: _calls(check, tools, _one_or(several))
    if asked is not None:
        field, make = asked
        return field, lambda check: _calls(check, tools, f"content | {_one_or(several)}", make(check))
    if several and not any(tool.function.strict for tool in tools):
        return None
    rules = "called* TEXT" if several else "TEXT | called"
    return "tools", lambda check: _calls(check, tools, rules)


def _format(asked: ResponseFormat | None) -> tuple[str, Make] | None:
    if asked is None or asked.type == "text":
        return None
    schema = asked.json_schema
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
    makes: dict[str, Callable[[Any], Grammar]] = {
        "json_": Grammar.json_schema, "json_object": lambda _: Grammar.json_object(), "regex": Grammar.regex,
        "choice": Grammar.choice, "grammar": Grammar.lark,
    }  # fmt: skip
    (name,) = given
    return f"structured_outputs.{name.strip('_')}", lambda _: makes[name](getattr(asked, name))


def _one_or(several: bool) -> str:
    return f'call ("\\n" call){{0,{MAX_TOOL_CALLS - 1}}}' if several else "call"


def _calls(check: Check, tools: Sequence[Tool], start: str, content: Grammar | None = None) -> Grammar:
    """The grammar of replies that call tools, whose first rule is `start`. content: of replies without calls."""
    # Without forcing, the model may write what must follow in its own tokens, such as the one that begins a call.
    lines = ['%llguidance {"no_forcing": true}']
    lines += [f"start: {start}", f"call: {quoted(CALL_BEGINS)} named", f"named: {_newline} ({_any(tools)}) {_end}"]
    if "TEXT" in start:
        lines += ["TEXT: /(.|\\n)*/", f"head[lazy]: TEXT {quoted(CALL_BEGINS)}", "called: head named"]
    if content is not None:
        lines.append("content: %json " + json.dumps(json.loads(content.text)["grammars"][0]["json_schema"]))
    lines += [f"tool_{number}: {rule}" for number, rule in enumerate(_named(check, tools))]
    return Grammar.trusted("\n".join(lines))


_newline, _end = quoted("\n"), quoted(f"\n{CALL_ENDS}")


def _any(tools: Sequence[Tool]) -> str:
    return " | ".join(f"tool_{number}" for number in range(len(tools)))


def _named(check: Check, tools: Sequence[Tool]) -> Iterator[str]:
    """A call's JSON by tool. Raises `ApiError` that says which tool's parameters cannot be a grammar."""
    for number, tool in enumerate(tools):
        strict = bool(tool.function.strict)
        known = tool.function.parameters or {"properties": {}, "additionalProperties": False}
        place = f"tools.{number}.function.parameters"
        try:
            if known.get("type", "object") != "object":
                raise GrammarError(f"the type must be object, got {known['type']!r}"[:200])
            schema = checked_schema({"type": "object"} | known, strict)
            check(Grammar.json_schema(schema, strict))
        except GrammarError as error:
            raise ApiError(400, f"{place}: {error}", place, "invalid_grammar") from error
        begin = json.dumps({"name": tool.function.name})[:-1] + ', "arguments": '
        yield f"{quoted(begin)} %json {json.dumps(schema, ensure_ascii=False)} {quoted('}')}"
