"""The arguments of a call while they are written: from the model's form to the JSON that clients get."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

_STRUCTURE = re.compile(r'[{}"\\]')
_WORDS = {"True": True, "False": False, "None": None}
"""Values as Python, and therefore templates, write them."""
Schema = Mapping[str, Any]


class Braces:
    """Where an object ends in JSON that comes in pieces."""

    def __init__(self, depth: int = 0):
        self.depth, self._quoted, self._escaped = depth, False, False

    def end(self, text: str, start: int = 0) -> int | None:
        """The place after the last brace of the object in `text`, of which all up to `start` was seen before; None: not
        yet."""
        place = start
        while place < len(text):
            if self._escaped:
                self._escaped, place = False, place + 1
                continue
            match = _STRUCTURE.search(text, place)
            if match is None:
                return None
            place, sign = match.end(), match[0]
            if sign == "\\":
                self._escaped = self._quoted
            elif sign == '"':
                self._quoted = not self._quoted
            elif not self._quoted:
                self.depth += 1 if sign == "{" else -1
                if self.depth <= 0:
                    return place
        return None


@dataclass(frozen=True)
class Elements:
    """How arguments are written as one element per parameter.

    before, between, after: what stands before a parameter's name, between that and its value, and after its value.
    begins: reads up to a value (group 1: the name). value_ends: reads what ends a value, ends: what ends the arguments.
    """

    before: str
    between: str
    after: str
    begins: re.Pattern[str]
    value_ends: re.Pattern[str]
    ends: re.Pattern[str]


class Arguments(Protocol):
    """Reads the arguments of one call."""

    def push(self, text: str) -> tuple[str, str, bool]:
        """More of the JSON that `text` makes known, what is left of `text`, and whether the call is complete."""


class JsonArguments:
    """JSON as the model wrote it. outer: the call ends with the object around the arguments, not with those."""

    def __init__(self, outer: bool):
        self._braces, self._outer, self._inside = Braces(), outer, True

    def push(self, text: str) -> tuple[str, str, bool]:
        """As `Arguments` says."""
        said = ""
        if self._inside:
            end = self._braces.end(text)
            if end is None:
                return text, "", False
            said, text, self._inside, self._braces = text[:end], text[end:], False, Braces(1)
        if not self._outer:
            return said, text, True
        end = self._braces.end(text)
        return (said, "", False) if end is None else (said, text[end:], True)


class ElementArguments:
    """One element per parameter; a value comes when it is complete. schema: of the tool's parameters, which says what
    is text."""

    def __init__(self, elements: Elements, schema: Schema):
        self._elements = elements
        properties = schema.get("properties")
        self._properties: Mapping[str, Any] = properties if isinstance(properties, Mapping) else {}
        self._names: set[str] = set()

    def push(self, text: str) -> tuple[str, str, bool]:
        """As `Arguments` says."""
        said, elements = "", self._elements
        while match := elements.begins.match(text):
            ends = elements.value_ends.search(text, match.end())
            if ends is None:
                return said, text, False
            value, text = text[match.end() : ends.start()], text[ends.end() :]
            if match[1] not in self._names:
                said += ("{", ", ")[bool(self._names)] + f"{_dumped(match[1])}: {self._json(match[1], value)}"
                self._names.add(match[1])
        end = elements.ends.match(text)
        if end is None:
            return said, text, False
        return said + ("}" if self._names else "{}"), text[end.end() :], True

    def _json(self, name: str, value: str) -> str:
        if only_texts(self._properties.get(name)):
            return _dumped(value)
        try:
            return _dumped(_WORDS[value] if value in _WORDS else json.loads(value, parse_constant=_refused))
        except (ValueError, RecursionError):
            return _dumped(value)


def only_texts(schema: Any) -> bool:
    """Whether all values that a schema allows are texts, which models write without quotes."""
    if not isinstance(schema, Mapping):
        return False
    listed = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(listed, list) and listed:
        return all(isinstance(value, str) for value in listed)
    return schema.get("type") == "string"


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
