"""Grammars that a reply can be held to, and which tokens may come next under one, by llguidance.

What is checked here bounds what compiling a grammar can take, before it is tried.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from solm.core.errors import SolmError, first_line

MAX_CHARACTERS = 65_536
"""Of a grammar's text; of a JSON schema, written without spaces."""
MAX_DEPTH = 32
"""Levels of arrays and objects in a JSON schema."""
MAX_VALUES = 4_000
"""Values in a JSON schema: objects, arrays, texts, numbers."""
MAX_ALTERNATIVES = 1_000
_WHITESPACE = "[ \\n\\r\\t]{1,40}"
"""Between JSON's tokens: enough to indent, and not so much that a small model writes nothing else."""
_EMBEDDED = re.compile(r"%\s*(json|regex)\b")
_LARK = re.compile(r"(?m)^[^\S\n]*(%llguidance\b|start\s*:)")
"""What llguidance's variant of Lark has, and GBNF has not; found in time that is proportional to the text."""

_BAD_REGEX = re.compile(r"regex parse error:\n(?:.*\n)*?error: (.+)")
_PRINTABLE = re.compile(r"[!-~]+")
_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 100_000, "max_grammar_size": 50_000, "max_items_in_row": 2_000, "max_lexer_states": 50_000,
    "step_lexer_fuel": 20_000, "step_max_items": 10_000, "verbose_errors": False,
}  # fmt: skip
"""llguidance's bounds on what compiling a grammar and a step may take; its own are 5 to 10 times as high."""


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
        raise GrammarError(f"the grammar cannot be read: {first_line(error)[:200]}") from error
    return found


def quoted(text: str) -> str:
    """A text as a terminal of a Lark grammar."""
    return json.dumps(text, ensure_ascii=False)


def checked_schema(schema: Mapping[str, Any], strict: bool = True) -> dict[str, Any]:
    """A schema with the settings of `Grammar.json_schema`. Raises `GrammarError` where it is too large or too deep."""
    values, level = 0, [schema]
    for depth in range(MAX_DEPTH + 2):
        values += len(level)
        if values > MAX_VALUES:
            raise GrammarError(f"the schema has more than {MAX_VALUES} values")
        if not level:
            break
        if depth > MAX_DEPTH:
            raise GrammarError(f"the schema is more than {MAX_DEPTH} levels deep")
        level = [inner for value in level for inner in _inner(value)]
    known: dict[str, Any] = {name: value for name, value in schema.items() if name != "x-guidance"}
    try:
        _short(json.dumps(known, ensure_ascii=False, allow_nan=False, separators=(",", ":")))
    except ValueError as error:
        raise GrammarError(f"the schema is not JSON: {first_line(error)[:200]}") from error
    return {"x-guidance": {"lenient": not strict, "whitespace_pattern": _WHITESPACE}} | known


def _inner(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


def _short(text: str) -> str:
    if len(text) > MAX_CHARACTERS:
        raise GrammarError(f"{len(text)} characters are too many; at most {MAX_CHARACTERS}")
    return text


class Constraint:
    """A grammar and how far one reply has come in it. field: that of a request, which asks for it."""

    def __init__(self, matcher: Any, vocabulary: int, field: str | None = None):
        self._matcher, self._vocabulary, self._field = matcher, vocabulary, field

    def copy(self, field: str | None = None) -> "Constraint":
        """The same for another reply, which goes on by itself."""
        return Constraint(self._matcher.deep_copy(), self._vocabulary, field or self._field)

    def masked(self, logits: np.ndarray) -> np.ndarray:
        """Logits [V] as float32 [V], minus infinity for tokens that may not come next.

        Raises `GrammarError` where no token may, or finding out takes more than the library's limits.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise self._stuck()
        allowed = np.unpackbits(bits, bitorder="little", count=self._vocabulary).view(bool)
        return np.where(allowed, logits, np.float32(-np.inf)).astype(np.float32, copy=False)

    def add(self, token: int) -> None:
        """`token` was chosen."""
        if not self._matcher.consume_token(token):
            raise self._stuck()

    def forced(self) -> list[int]:
        """The next tokens, as far as the text is the only one that may follow."""
        return list(self._matcher.compute_ff_tokens())

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())

    def _stuck(self) -> GrammarError:
        place = "" if self._field is None else f"{self._field}: "
        reason = _first_line(self._matcher.get_error())
        return GrammarError(f"{place}the grammar cannot be followed any further: {reason}", self._field)


class Compiler:
    """Makes grammars into constraints for one model's tokens.

    tokenizer: transformers' fast one or `solm.backends.tokenizer.Tokenizer`. vocabulary: number of logits. ends: tokens
    that end a reply. Making one takes about a second for 150,000 tokens, in which no other thread of Python runs.
    Raises `SolmError` where llguidance is not installed, or cannot read the tokenizer.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, ends: Iterable[int]):
        try:
            from llguidance import LLTokenizer
        except ImportError as error:
            raise SolmError(
                f"grammars need llguidance: pip install '.[serve]' in a checkout of solm ({error})"
            ) from error
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise SolmError("grammars need a tokenizer of the tokenizers package; this model's is another one")
        listed = list(ends)
        try:
            self._tokenizer = LLTokenizer(
                _plain_additions(backend.to_str()), n_vocab=vocabulary, eos_token=listed or None
            )
        except ValueError as error:
            raise SolmError(f"grammars: this model's tokenizer cannot be read ({_first_line(str(error))})") from error
        self._vocabulary = vocabulary

    def compile(self, grammar: Grammar) -> Constraint:
        """A grammar at its beginning. Raises `GrammarError` as `matcher_of` does."""
        return Constraint(matcher_of(self._tokenizer, grammar.text), self._vocabulary)


def matcher_of(tokenizer: Any, grammar: str) -> Any:
    """llguidance's matcher of `Grammar.text`, which lets other threads run while it compiles.

    Raises `GrammarError` for a grammar that is malformed, too large, or matches nothing.
    """
    from llguidance import LLMatcher, LLParserLimits

    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(**_LIMITS))
    if not matcher.is_error():
        matcher.compute_bitmask()  # what is made once for all copies
    if matcher.is_error():
        raise GrammarError(_mistake(matcher.get_error()))
    return matcher


def _mistake(said: str) -> str:
    """What llguidance says of a grammar, in one line: of a regular expression the reason, which comes after it."""
    wrong = _BAD_REGEX.search(said)
    return _first_line(said if wrong is None else f"{said[: wrong.start()][:100]} {wrong[1]}".strip())


def _plain_additions(tokenizer: str) -> str:
    """A tokenizer's JSON, in which added tokens that are text, such as ``<tool_call>``, are tokens like others. It no
    longer pads or cuts short, as a call with ``padding=True`` leaves it.

    llguidance takes those in angle brackets to be special, and then lets no text have them.
    """
    known = json.loads(tokenizer) | {"padding": None, "truncation": None}
    vocabulary, added = known["model"].get("vocab"), known.get("added_tokens") or []
    if known["model"].get("type") != "BPE" or not isinstance(vocabulary, dict):
        return json.dumps(known)
    plain = [token for token in added if not token["special"] and _PRINTABLE.fullmatch(token["content"])]
    known["added_tokens"] = [token for token in added if token not in plain]
    vocabulary |= {token["content"]: token["id"] for token in plain}
    return json.dumps(known)


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else "it matches nothing")[:200]
