"""Grammars in force: which tokens may come next, by llguidance, which imports neither torch nor transformers."""

import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from solm.core.arrays import Array, as_numpy
from solm.core.errors import SolmError
from solm.runtime.grammars import Grammar, GrammarError

_PRINTABLE = re.compile(r"[!-~]+")
_BAD_REGEX = re.compile(
    r'(?:(at \d+\(\d+\): )?invalid regex( ".*") \(in regex\): )?regex parse error:\n(?:.*\n)*?error: (.+)'
)
_REGEX_ALONE = "at 1(8): "
"""Where llguidance finds a regular expression that is the whole grammar: of a text that nobody wrote."""
_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 100_000, "max_grammar_size": 50_000, "max_items_in_row": 2_000, "max_lexer_states": 50_000,
    "step_lexer_fuel": 20_000, "step_max_items": 10_000, "verbose_errors": False,
}  # fmt: skip
"""llguidance's bounds on what compiling a grammar and a step may take; its own are 5 to 10 times as high."""


class Constraint:
    """A grammar and how far one reply has come in it. field: that of a request, which asks for it."""

    def __init__(self, matcher: Any, vocabulary: int, field: str | None = None):
        self._matcher, self._vocabulary, self._field = matcher, vocabulary, field

    def copy(self, field: str | None = None) -> "Constraint":
        """The same for another reply, which goes on by itself."""
        return Constraint(self._matcher.deep_copy(), self._vocabulary, field or self._field)

    def masked(self, logits: Array) -> np.ndarray:
        """Logits [V] as float32 [V], minus infinity for tokens that may not come next.

        Raises `GrammarError` where no token may, or finding out takes more than the library's limits.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise self._stuck()
        allowed = np.unpackbits(bits, bitorder="little", count=self._vocabulary).view(bool)
        return np.where(allowed, as_numpy(logits), np.float32(-np.inf)).astype(np.float32, copy=False)

    def said(self, token: int) -> None:
        """`token` was chosen."""
        if not self._matcher.consume_token(token):
            raise self._stuck()

    @property
    def complete(self) -> bool:
        """Whether nothing can follow what was said."""
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
        self._vocabulary, self._limits = vocabulary, parser_limits()

    def compile(self, grammar: Grammar) -> Constraint:
        """A grammar at its beginning. Raises `GrammarError` for one that is malformed, too large, or matches nothing.

        llguidance lets other threads run meanwhile.
        """
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, grammar.text, log_level=0, limits=self._limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # what is made once for all copies
        wrong = matcher_error(matcher)
        if wrong is not None:
            raise GrammarError(wrong)
        return Constraint(matcher, self._vocabulary)


def parser_limits() -> Any:
    """llguidance's limits, as they are set here."""
    from llguidance import LLParserLimits

    return LLParserLimits(**_LIMITS)


def matcher_error(matcher: Any) -> str | None:
    """What is wrong with a grammar, by llguidance's matcher of it, in one line; None: nothing."""
    if not matcher.is_error():
        return None
    said = matcher.get_error()
    found = _BAD_REGEX.match(said)
    if found is None:
        return _first_line(said)
    place, pattern, reason = found.groups("")
    place = "" if place == _REGEX_ALONE else place
    shown = pattern if len(pattern) <= 100 else f'{pattern[:100]}..."'
    return f"{place}invalid regex{shown}: {reason[:100]}"


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
