"""What a reply may be told to follow: a JSON schema, a regular expression, one of several texts, or a grammar.

The grammars are llguidance's. What is checked here bounds what compiling one can take, before it is tried.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import lcm
from typing import Any

from solm.core.errors import SolmError

MAX_CHARACTERS = 65_536
"""Of a grammar's text; of a JSON schema, written without spaces."""
MAX_DEPTH = 32
"""Levels of arrays and objects in a JSON schema."""
MAX_VALUES = 4_000
"""Values in a JSON schema: objects, arrays, texts, numbers."""
MAX_ALTERNATIVES = 1_000
_MAX_MULTIPLE = 10_000
"""Of the least common multiple of all ``multipleOf`` in a schema, in their last place: a number has as many states."""
_WHITESPACE = "[ \\n\\r\\t]{1,40}"
"""Between JSON's tokens: enough to indent, and not so much that a small model writes nothing else."""
_EMBEDDED = re.compile(r"%\s*(json|regex)\b")
_LARK = re.compile(r"(?m)^[^\S\n]*(%llguidance\b|start\s*:)")
"""What llguidance's variant of Lark has, and GBNF has not; found in time that is proportional to the text."""


class GrammarError(SolmError):
    """A grammar that is malformed, too large, or asks for what cannot be enforced. field: of a request, that it is."""

    def __init__(self, message: str, field: str | None = None):
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class Grammar:
    """What a whole reply has to match. Made by the functions below; `text` is llguidance's form of it."""

    text: str

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any], strict: bool = True) -> "Grammar":
        """JSON that a schema allows, its properties in the schema's order.

        strict: refuse keywords that cannot be enforced, such as ``not``; else they are ignored. Raises `GrammarError`
        for a schema that is too large or too deep.
        """
        return cls(json.dumps({"grammars": [{"json_schema": checked_schema(schema, strict)}]}))

    @classmethod
    def json_object(cls) -> "Grammar":
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> "Grammar":
        """Text that a regular expression matches from its first to its last character, without look-around."""
        from llguidance import LLMatcher

        return cls(LLMatcher.grammar_from_regex(_short(pattern)))

    @classmethod
    def choice(cls, texts: Sequence[str]) -> "Grammar":
        """One of several texts. Raises `GrammarError` for none, more than `MAX_ALTERNATIVES`, or an empty one."""
        if not 1 <= len(texts) <= MAX_ALTERNATIVES:
            raise GrammarError(f"give 1 to {MAX_ALTERNATIVES} choices, got {len(texts)}")
        if not all(texts):
            raise GrammarError("a choice is empty")
        return cls.trusted("start: " + " | ".join(map(quoted, texts)))

    @classmethod
    def lark(cls, text: str, convert: Callable[[str], str] | None = None) -> "Grammar":
        """A context-free grammar in llguidance's variant of Lark, or in GBNF, llama.cpp's EBNF (``root ::= ...``).

        convert: GBNF to Lark, by default `lark_of`. Raises `GrammarError` for one that embeds JSON schemas, which are
        not checked there.
        """
        if not _short(text).strip():
            raise GrammarError("the grammar is empty")
        if _EMBEDDED.search(text):
            raise GrammarError("%json and %regex are not allowed in a grammar; give a JSON schema as such")
        return cls.trusted(text if _LARK.search(text) else (convert or lark_of)(text))

    @classmethod
    def trusted(cls, text: str) -> "Grammar":
        """A grammar in llguidance's Lark that was put together from checked parts."""
        return cls(json.dumps({"grammars": [{"lark_grammar": _short(text)}]}))


def lark_of(gbnf: str) -> str:
    """A grammar in GBNF as Lark. It may take minutes for some of 65,536 characters. Raises `GrammarError`."""
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        found: str = gbnf_to_lark(gbnf)
    except Exception as error:  # a parser of its own, which fails in many ways
        raise GrammarError(f"the grammar cannot be read: {_line(error)}") from error
    return found


def quoted(text: str) -> str:
    """A text as a terminal of a Lark grammar."""
    return json.dumps(text, ensure_ascii=False)


def checked_schema(schema: Mapping[str, Any], strict: bool = True) -> dict[str, Any]:
    """A schema with the settings of `Grammar.json_schema`. Raises `GrammarError` where it is too large or too deep."""
    values, level, steps = 0, [schema], list[Any]()
    for depth in range(MAX_DEPTH + 2):
        values += len(level)
        if values > MAX_VALUES:
            raise GrammarError(f"the schema has more than {MAX_VALUES} values")
        if not level:
            break
        if depth > MAX_DEPTH:
            raise GrammarError(f"the schema is more than {MAX_DEPTH} levels deep")
        steps += [value["multipleOf"] for value in level if isinstance(value, Mapping) and "multipleOf" in value]
        level = [inner for value in level for inner in _inner(value)]
    _check_multiples(steps)
    known: dict[str, Any] = {name: value for name, value in schema.items() if name != "x-guidance"}
    try:
        _short(json.dumps(known, ensure_ascii=False, allow_nan=False, separators=(",", ":")))
    except ValueError as error:
        raise GrammarError(f"the schema is not JSON: {_line(error)}") from error
    return {"x-guidance": {"lenient": not strict, "whitespace_pattern": _WHITESPACE}} | known


def _inner(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


def _check_multiples(steps: list[Any]) -> None:
    """Numbers are told apart by their remainders: bound how many there are."""
    steps = [step for step in steps if type(step) in (int, float)]  # others are no schema, which llguidance says
    if any(not 1e-9 <= step <= 1e9 for step in steps):
        raise GrammarError("multipleOf must be from 1e-9 to 1e9")
    numbers = [Decimal(repr(step)) for step in steps]
    scale = 10 ** max([0, *(-int(number.normalize().as_tuple().exponent) for number in numbers)])
    common = Decimal(lcm(*(int(number * scale) for number in numbers))).normalize() if numbers else Decimal(1)
    if int("".join(map(str, common.as_tuple().digits))) > _MAX_MULTIPLE:
        raise GrammarError(
            f"multipleOf: the least common multiple must have at most {_MAX_MULTIPLE} steps of its last place"
        )


def _short(text: str) -> str:
    if len(text) > MAX_CHARACTERS:
        raise GrammarError(f"{len(text)} characters are too many; at most {MAX_CHARACTERS}")
    return text


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
