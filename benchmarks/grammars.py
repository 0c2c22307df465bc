"""What grammars cost: compiling one, and the mask of a step of many rows, by library.

    python grammars.py --model FILE --library llguidance|xgrammar --rows 16 --rounds 5

For every case rows follow the same text, token by token. A step is, for all rows: the mask of the tokens that may come
next, its bits applied to logits in NumPy (what the server does), and the chosen token. llguidance is what solm uses;
xgrammar needs an environment that has it beside solm. Times are of one thread, as processor time, best of the rounds.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from common import finish, parser
from solm.backends.tokenizer import Tokenizer, model_tokenizer
from solm.runtime.constraints import Compiler
from solm.runtime.grammars import Grammar

CLASS = {
    "type": "object", "required": ["name", "year", "tags", "note"], "additionalProperties": False,
    "properties": {
        "name": {"type": "string"}, "year": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["new", "old", "rare"]}}, "note": {"type": "string"},
    },
}  # fmt: skip
SAID = {"name": "Ada Lovelace's engine", "year": 1843, "tags": ["old", "rare"], "note": "It weaves, she wrote.\nQuite."}
TREE = {
    "$defs": {"node": {
        "type": "object", "required": ["value"], "additionalProperties": False,
        "properties": {"value": {"type": "number"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
    }},
    "$ref": "#/$defs/node",
}  # fmt: skip
GROWN = {"value": 1.5, "kids": [{"value": 2, "kids": [{"value": 3.25}]}, {"value": -4}]}
FIELDS = {f"field_{number}": {"type": "string", "maxLength": 20} for number in range(60)}
WIDE = {"type": "object", "properties": FIELDS, "required": list(FIELDS), "additionalProperties": False}
CASES = {
    "object": ({"type": "object"}, {"a": [1, {"b": "It was a dark and stormy night."}]}), "class": (CLASS, SAID),
    "tree": (TREE, GROWN), "wide": (WIDE, dict.fromkeys(FIELDS, "some words")),
    "pattern": (
        {"type": "array", "items": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}(-[a-z]+)?$"}},
        ["AB-1234-north", "CD-0099"],
    ),
}  # fmt: skip
"""Schemas, and what is said."""
VOCABULARY = 151_936


def with_llguidance(tokenizer: Tokenizer, ends: list[int]) -> Callable[[dict[str, Any]], Callable[[], Any]]:
    """By schema what compiles it; that gives a row's mask and how it goes on."""
    compiler = Compiler(tokenizer, VOCABULARY, ends)

    def compiled(schema: dict[str, Any]) -> Callable[[], Any]:
        return lambda: compiler.compile(Grammar.json_schema(schema))

    return compiled


class XgrammarRow:
    """The same of xgrammar, behind the same two methods."""

    def __init__(self, grammar: Any):
        import xgrammar

        self._grammar, self._matcher = grammar, xgrammar.GrammarMatcher(grammar)
        self._bits = xgrammar.allocate_token_bitmask(1, VOCABULARY)

    def copy(self) -> "XgrammarRow":
        return XgrammarRow(self._grammar)

    def masked(self, logits: np.ndarray) -> np.ndarray:
        self._matcher.fill_next_token_bitmask(self._bits)
        bits = np.unpackbits(self._bits.numpy().view(np.uint8)[0], bitorder="little", count=VOCABULARY)
        return np.where(bits.view(bool), logits, np.float32(-np.inf))

    def said(self, token: int) -> None:
        assert self._matcher.accept_token(token)


def with_xgrammar(tokenizer: Tokenizer, ends: list[int]) -> Callable[[dict[str, Any]], Callable[[], Any]]:
    import xgrammar

    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer.full, vocab_size=VOCABULARY, stop_token_ids=ends)
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def compiled(schema: dict[str, Any]) -> Callable[[], Any]:
        return lambda: XgrammarRow(compiler.compile_json_schema(json.dumps(schema)))

    return compiled


def measured(compile_: Callable[[], Any], ids: list[int], rows: int, rounds: int) -> dict[str, float]:
    """Milliseconds to compile, of a step of all rows on average, and of the longest step."""
    logits = np.random.default_rng(0).normal(0, 1, VOCABULARY).astype(np.float32)
    compiling, steps = [], []
    for _ in range(rounds):
        begun = time.thread_time()
        first = compile_()
        compiling.append(time.thread_time() - begun)
        followed = [first.copy() for _ in range(rows)]
        moments = []
        for token in ids:
            begun = time.thread_time()
            for row in followed:
                assert row.masked(logits)[token] > -np.inf
                row.said(token)
            moments.append(time.thread_time() - begun)
        steps.append(moments)
    best = np.array(steps).min(0)
    return {
        "compile_ms": 1e3 * min(compiling),
        "step_ms": 1e3 * float(best.mean()),
        "longest_ms": 1e3 * float(best.max()),
    }


def main() -> None:
    options = parser(__doc__, "rounds")
    options.add_argument("--library", choices=["llguidance", "xgrammar"], default="llguidance")
    options.add_argument("--rows", type=int, default=16)
    asked = options.parse_args()
    tokenizer = model_tokenizer(asked.model)
    begun = time.thread_time()
    make = with_llguidance if asked.library == "llguidance" else with_xgrammar
    compiled = make(tokenizer, tokenizer.encode("<|im_end|>"))
    found: dict[str, Any] = {"vocabulary_ms": 1e3 * (time.thread_time() - begun), "cases": {}}
    for name, (schema, said) in CASES.items():
        ids = tokenizer.encode(json.dumps(said))
        found["cases"][name] = {"tokens": len(ids), **measured(compiled(schema), ids, asked.rows, asked.rounds)}
    lines = [f"{asked.library}: {found['vocabulary_ms']:.0f} ms for the vocabulary"]
    lines += [f"{name:8s} {case}" for name, case in found["cases"].items()]
    finish("grammars", asked, {asked.library: found}, lines)


if __name__ == "__main__":
    main()
