"""The grammars of replies that call tools: in the model's own form, with arguments that fit."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from solm.runtime.grammar_trial import GrammarTooSlowError
from solm.runtime.grammars import Constraint, Grammar, GrammarError, checked_schema, quoted
from solm.serving.call_arguments import Elements, only_texts
from solm.serving.call_forms import NAME, CallForm
from solm.serving.failures import ApiError
from solm.serving.settings import MAX_TOOL_CALLS
from solm.serving.structure import Tool


class Check(Protocol):
    """What makers of grammars are given, to try parts of them in bounded time."""

    def __call__(self, grammar: Grammar) -> Constraint:
        """A part, compiled. Raises `GrammarError`."""

    def convert(self, gbnf: str) -> str:
        """A grammar in GBNF as Lark. Raises `GrammarError`."""


_BOUNDS = frozenset({"pattern", "format", "minLength", "maxLength"})
_ENFORCED = frozenset(
    {"type", "properties", "required", "additionalProperties", "$defs", "definitions", "x-guidance", "title",
     "description", "default", "examples", "$schema", "$id", "$comment"}
)  # fmt: skip
"""What a schema of parameters that are elements may have: the rest cannot be enforced in that form."""


@dataclass(frozen=True)
class CallGrammars:
    """Builds grammars for one model. marks: tokens of its form of calls that are no text (see `hidden_marks`)."""

    form: CallForm
    marks: Mapping[str, int] = field(default_factory=dict)

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
        if form.begins in self.marks:
            lines = [inside, f"called: TEXT {self._text(form.begins)} block"]
        else:
            lines = [inside, f"head[lazy]: TEXT {quoted(form.begins)}", "called: head block"]
        return self._grammar(check, tools, start, several, *lines)

    def _grammar(self, check: Check, tools: Sequence[Tool], start: str, several: bool, *more: str) -> Grammar:
        form, several = self.form, several and self.form.several
        again = f" ({self._text(form.between)} call){{0,{MAX_TOOL_CALLS - 1}}}" if several else ""
        first = form.first.removeprefix(form.begins)
        # Without forcing, the model may write what must follow in its own tokens, such as the one that begins a call.
        lines = ['%llguidance {"no_forcing": true}', f"start: {start}"]
        lines += [f"calls: {self._text(form.first.removesuffix(first))} block", *more]
        lines += [f"block: {self._text(first)} call{again} {self._text(form.last)}"]
        lines += ["call: " + " | ".join(f"tool_{number}" for number in range(len(tools)))]
        if form.elements is not None:
            lines += ["VALUE: /(.|\\n)*/", f"free[lazy]: VALUE {quoted(form.elements.after)}"]
        lines += [f"tool_{number}: {rule}" for number, rule in enumerate(self._tools(check, tools))]
        return Grammar.trusted("\n".join(lines))

    def _text(self, text: str) -> str:
        """Literal text, in which marks may be tokens."""
        parts = re.split("(" + "|".join(map(re.escape, self.marks)) + ")", text) if self.marks else [text]
        return " ".join(f"<[{self.marks[part]}]>" if part in self.marks else quoted(part) for part in parts if part)

    def _tools(self, check: Check, tools: Sequence[Tool]) -> Iterator[str]:
        """A call by tool. Raises `ApiError` that says which tool's parameters cannot be a grammar."""
        for number, tool in enumerate(tools):
            strict = bool(tool.function.strict)
            known = tool.function.parameters or {"properties": {}, "additionalProperties": False}
            place = f"tools.{number}.function.parameters"
            try:
                if known.get("type", "object") != "object":
                    raise GrammarError(f"the type must be object, got {known['type']!r}"[:200])
                schema = checked_schema({"type": "object"} | known, strict)
                check(Grammar.json_schema(schema, strict))
                yield self._call(tool.function.name, schema, strict)
            except GrammarError as error:
                code = "grammar_too_slow" if isinstance(error, GrammarTooSlowError) else "invalid_grammar"
                raise ApiError(400, f"{place}: {error}", place, code) from error

    def _call(self, name: str, schema: dict[str, Any], strict: bool) -> str:
        elements = self.form.elements
        arguments = _json(schema) if elements is None else " ".join(_parameters(elements, schema, strict))
        return f"{self._text(self.form.before.replace(NAME, name))} {arguments} {self._text(self.form.after)}"


def _json(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps(schema, ensure_ascii=False)


def _parameters(elements: Elements, schema: Mapping[str, Any], strict: bool) -> Iterator[str]:
    """An element per property, in the schema's order; those that are not required may be missing.

    Raises `GrammarError` for what this form cannot say, and with `strict` for what it cannot enforce.
    """
    properties = schema.get("properties") or {}
    left = schema.keys() - _ENFORCED
    if strict and left:
        raise GrammarError(f"{min(left)!r} cannot be enforced in this model's form of calls")
    shared = {name: schema[name] for name in ("x-guidance", "$defs", "definitions") if name in schema}
    for name, known in properties.items():
        begins = elements.before + name + elements.between
        match = elements.begins.fullmatch(begins)
        if not name or match is None or match[1] != name:
            raise GrammarError(f"the name {name!r} cannot be written in this model's form of calls"[:200])
        element = f"{quoted(begins)} {_value(known, shared, strict, quoted(elements.after))}"
        yield element if name in (schema.get("required") or []) else f"({element})?"


def _value(known: Any, shared: Mapping[str, Any], strict: bool, end: str) -> str:
    """The value of a parameter and the end of its element: text without quotes, or JSON."""
    if not only_texts(known):
        inner = known if isinstance(known, Mapping) else {}
        if any(not target.startswith(("#/$defs/", "#/definitions/")) for target in _references(inner)):
            raise GrammarError("in this model's form of calls a $ref within a parameter leads to $defs alone")
        return f"{_json({**shared, **inner})} {end}"
    listed = known.get("enum", [known["const"]] if "const" in known else None)
    if listed:
        return f"({' | '.join(map(quoted, listed))}) {end}"
    if strict and (bounds := _BOUNDS & known.keys()):
        raise GrammarError(f"{min(bounds)!r} of a text cannot be enforced in this model's form of calls")
    return "free"


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _references(inner)
