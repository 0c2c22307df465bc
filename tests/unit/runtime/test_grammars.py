"""Grammars and the constraints made of them, without a model."""

import copy
import json
import re

import numpy as np
import pytest

pytest.importorskip("llguidance")

from solm.core.errors import SolmError
from solm.runtime.grammars import (
    MAX_ALTERNATIVES,
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_VALUES,
    Compiler,
    Grammar,
    GrammarError,
)
from solm.runtime.sampling import Plain, Sampler

END = 2


@pytest.fixture(scope="module")
def compiler(byte_tokenizer):
    return Compiler(byte_tokenizer, 300, [END])  # a model with more logits than there are tokens


def said(tokenizer, constraint, seed, longest=400):
    """A reply that is drawn from what is allowed, all tokens alike."""
    sampler, ids = Sampler(seed, plain=Plain(), stops=frozenset({END}), constraint=constraint), []
    while len(ids) < longest:
        ids.append(sampler.choose(sampler.possible(np.zeros(300, np.float32))))
        if sampler.ended(ids[-1]):
            return tokenizer.decode(ids, skip_special_tokens=True)
    raise AssertionError("it does not end")


@pytest.mark.parametrize(
    ("grammar", "form"),
    [
        (Grammar.regex("a{2,4}b?"), "a{2,4}b?"), (Grammar.regex("[^/]/\\n"), "[^/]/\\n"),
        (Grammar.choice(['"', "é", "yes or no"]), '"|é|yes or no'),
        (Grammar.lark('start: "a" b\nb: "c" | "d" b'), "ad*c"), (Grammar.lark('root ::= [0-9]{3} "!"'), "[0-9]{3}!"),
        (Grammar.json_schema({"enum": [1, "x", None]}), '1|"x"|null'),
        (Grammar.json_schema({"type": "integer", "minimum": 3, "maximum": 5, "multipleOf": 2}), "4"),
        (Grammar.json_schema({"type": "integer", "minimum": 25, "maximum": 35, "multipleOf": 10}), "30"),
        (Grammar.json_schema({"not": {"type": "null"}, "const": 7}, strict=False), "7"),
    ],
)  # fmt: skip
def test_replies_match(byte_tokenizer, compiler, grammar, form):
    constraint = compiler.compile(grammar)
    for seed in range(20):
        found = said(byte_tokenizer, constraint.copy(), seed)
        assert re.fullmatch(form, found), found


@pytest.mark.parametrize("text", ["\n" * 65_000 + "x", " " * 65_000 + "x", "start " * 10_000, "start\n" * 10_000])
def test_which_of_two_languages_a_grammar_is_in_is_found_at_once(text):
    asked = []
    Grammar.lark(text, lambda gbnf: asked.append(gbnf) or 'start: "a"')
    assert asked == [text]


@pytest.mark.parametrize("text", ['start: "a"', '\n  start : "a"', '// a\n%llguidance {}\nstart: "a"'])
def test_lark_is_left_as_it_is(text):
    assert Grammar.lark(text, None) == Grammar.trusted(text)


def test_padding_that_a_call_left_behind_does_not_matter(byte_tokenizer):
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer(["ab"], padding="max_length", max_length=30, padding_side="left")
    constraint = Compiler(tokenizer, 300, [END]).compile(Grammar.choice(["ab"]))
    assert said(tokenizer, constraint, 0) == "ab"


def test_a_schema_holds_and_white_space_has_an_end(byte_tokenizer, compiler):
    schema = {
        "type": "object", "required": ["a", "b"], "additionalProperties": False,
        "properties": {"a": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}, "b": {"enum": ["c", "d"]}},
        "x-guidance": {"whitespace_pattern": "x"},
    }  # fmt: skip
    constraint = compiler.compile(Grammar.json_schema(schema))
    for seed in range(10):
        text = said(byte_tokenizer, constraint.copy(), seed)
        found = json.loads(text)
        assert list(found) == ["a", "b"]
        assert found["b"] in ("c", "d")
        assert all(len(space) <= 40 for space in re.findall(r"\s+", text))


def test_logits_of_what_is_allowed_are_the_models_own(compiler):
    constraint = compiler.compile(Grammar.choice(["ab", "ac"]))
    logits = np.random.default_rng(0).normal(0, 1, 300).astype(np.float32)
    kept = logits.copy()
    masked = constraint.masked(logits)
    (first,) = np.flatnonzero(masked > -np.inf)
    assert masked[first] == logits[first]
    other = constraint.copy()
    constraint.add(int(first))
    assert np.count_nonzero(constraint.masked(logits) > -np.inf) == 2
    assert np.array_equal(other.masked(logits), masked), "a copy goes on by itself"
    assert np.array_equal(logits, kept), "the logits stay as they are"
    with pytest.raises(GrammarError, match="cannot be followed"):
        other.add(END)


def test_a_token_that_has_no_weight_is_never_drawn():
    scores = np.array([-np.inf, 0.0, 0.0, -np.inf], np.float32)
    assert Plain().draw(scores, np.nextafter(1, 0)) == 2


def nested(levels):
    return {"type": "string"} if levels == 0 else {"properties": {"a": nested(levels - 1)}}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Grammar.json_schema(nested(MAX_DEPTH)), "levels deep"),
        (lambda: Grammar.json_schema({"enum": list(range(MAX_VALUES))}), "values"),
        (lambda: Grammar.json_schema({"const": "a" * MAX_CHARACTERS}), "characters are too many"),
        (lambda: Grammar.json_schema({"const": float("nan")}), "not JSON"),
        (lambda: Grammar.regex("a" * (MAX_CHARACTERS + 1)), "characters are too many"),
        (lambda: Grammar.choice([]), "got 0"),
        (lambda: Grammar.choice(["a"] * (MAX_ALTERNATIVES + 1)), "choices"),
        (lambda: Grammar.lark(" \n"), "empty"),
        (lambda: Grammar.lark("root ::= (" * 3000), "cannot be read"),
        (lambda: Grammar.lark('start: % json {"type": "null"}'), "not allowed"),
    ],
)  # fmt: skip
def test_what_is_too_large_is_refused_before_it_is_compiled(make, words):
    with pytest.raises(GrammarError, match=words):
        make()


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar.json_schema({"$ref": "#"}), Grammar.json_schema({"type": "x"}), Grammar.json_schema({"not": {}}),
        Grammar.json_schema({"type": "string", "pattern": "(?=a)b"}), Grammar.json_schema({"enum": []}),
        Grammar.regex("(a"), Grammar.trusted("start: a"), Grammar.trusted(""), Grammar.trusted('start: "a" b'),
    ],
)  # fmt: skip
def test_what_cannot_be_a_grammar_is_one_line(compiler, grammar):
    with pytest.raises(GrammarError) as refused:
        compiler.compile(grammar)
    assert 0 < len(str(refused.value)) <= 200
    assert "\n" not in str(refused.value)


def test_what_is_at_the_limits_is_compiled(byte_tokenizer, compiler):
    for grammar in (
        Grammar.json_schema(nested(MAX_DEPTH // 2 - 1)), Grammar.json_schema({"type": "number", "multipleOf": 0.01}),
        Grammar.json_schema({"type": "integer", "multipleOf": 9_973}), Grammar.choice(list(map(str, range(1000)))),
        Grammar.json_schema({"enum": [f"value {number}" for number in range(1500)]}),
        Grammar.json_schema({"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(300)}}),
    ):  # fmt: skip
        assert not compiler.compile(grammar).complete


def test_a_tokenizer_of_another_kind_has_no_grammars():
    with pytest.raises(SolmError, match="tokenizers package"):
        Compiler(object(), 10, [1])
