"""The grammars of replies that call tools: in the model's own form, with arguments that fit."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from solm.runtime.constraints import Constraint
from solm.runtime.grammars import Grammar, GrammarError, checked_schema, quoted
from solm.serving.call_arguments import only_texts
from solm.serving.call_forms import NAME, CallForm
from solm.serving.failures import ApiError
from solm.serving.settings import MAX_TOOL_CALLS
from solm.serving.structure import Tool

Check = Callable[[Grammar], Constraint]
_BOUNDS = frozenset({"pattern", "format", "minLength", "maxLength"})
_ENFORCED = frozenset(
    {"type", "properties", "required", "additionalProperties", "$defs", "definitions", "x-guidance", "title",
     "description", "default", "examples", "$schema", "$id", "$comment"}
)  # fmt: skip
"""What a schema of parameters that are elements may have: the rest cannot be enforced in that form."""
_LINE, _VALUE_ENDS = "\n", "</parameter>\n"


@dataclass(frozen=True)
class CallGrammars:
    """Builds grammars for one model. mark: the token that begins a call, where it is no text (see `hidden_mark`)."""

    form: CallForm
    mark: int | None = None

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
        if self.mark is None:
            lines = [inside, f"head[lazy]: TEXT {quoted(form.begins)}", "called: head block"]
        else:
            lines = [inside, f"called: TEXT <[{self.mark}]> block"]
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
        if form.arguments == "parameters":
            lines += ["VALUE: /(.|\\n)*/", f"free[lazy]: VALUE {quoted(_LINE + _VALUE_ENDS)}"]
        lines += [f"tool_{number}: {rule}" for number, rule in enumerate(self._tools(check, tools))]
        return Grammar.trusted("\n".join(lines))

    def _text(self, text: str) -> str:
        """Literal text, in which `form.begins` may be a token."""
        parts = text.split(self.form.begins) if self.mark is not None else [text]
        return f" <[{self.mark}]> ".join(quoted(part) if part else "" for part in parts)

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
                raise ApiError(400, f"{place}: {error}", place, "invalid_grammar") from error

    def _call(self, name: str, schema: dict[str, Any], strict: bool) -> str:
        form = self.form
        if form.arguments == "json":
            before = form.before.replace(NAME, json.dumps(name))
            return f"{quoted(before)} {_json(schema)} {quoted(form.after)}"
        parameters = " ".join(_parameters(schema, strict))
        return f"{quoted(form.before.replace(NAME, name))} {parameters} {quoted(form.after)}"


def _json(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps(schema, ensure_ascii=False)


def _parameters(schema: Mapping[str, Any], strict: bool) -> Iterator[str]:
    """An element per property, in the schema's order; those that are not required may be missing.

    Raises `GrammarError` for what this form cannot say, and with `strict` for what it cannot enforce.
    """
    properties = schema.get("properties") or {}
    left = schema.keys() - _ENFORCED
    if strict and left:
        raise GrammarError(f"{min(left)!r} cannot be enforced in this model's form of calls")
    shared = {name: schema[name] for name in ("x-guidance", "$defs", "definitions") if name in schema}
    for name, known in properties.items():
        if not name or {">", "\n"} & set(name):
            raise GrammarError(f"the name {name!r} cannot be written in this model's form of calls"[:200])
        element = f"{quoted(f'<parameter={name}>{_LINE}')} {_value(known, shared, strict)}"
        yield element if name in (schema.get("required") or []) else f"({element})?"


def _value(known: Any, shared: Mapping[str, Any], strict: bool) -> str:
    """The value of a parameter and the end of its element: text without quotes, or JSON."""
    end = quoted(f"{_LINE}{_VALUE_ENDS}")
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
