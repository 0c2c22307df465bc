"""Damaged schemas, tools and grammars by the thousand: each is answered or refused by name, and nothing is left."""

import copy
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from helpers.serving import TOOL_TEMPLATE, gauges, running, tiny_service, until

pytest.importorskip("llguidance")

NODE_NAME = "#/$defs/node"
NODE = {
    "type": "object", "required": ["name", "kids"], "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{1,9}$", "minLength": 1},
        "age": {"type": "integer", "minimum": 0, "maximum": 150, "multipleOf": 3},
        "when": {"type": "string", "format": "date-time"}, "mood": {"enum": ["good", "bad", None, 7]},
        "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}, "minItems": 1, "maxItems": 3},
        "more": {"anyOf": [{"const": "x"}, {"oneOf": [{"type": "null"}, {"type": "number"}]}, {"$ref": NODE_NAME}]},
    },
    "patternProperties": {"^x-": {"type": "string"}}, "allOf": [{"minProperties": 1}],
    "$defs": {"node": {"type": "object", "properties": {"value": {"$ref": NODE_NAME}}, "not": {"required": ["z"]}}},
}  # fmt: skip
GRAMMARS = (
    'start: item ("," item)*\nitem: NAME "=" value\nvalue: /[0-9]+/ | "(" start ")"\nNAME: /[a-z]{1,8}/\n%ignore / +/',
    'root ::= item+ ("," ws root)?\nitem ::= [a-z]+ "=" ("yes" | "no" | "(" root ")"){1,3}\nws ::= [ \\n]*',
)
PATTERNS = ("(ab|c[d-f]{2,5})+x?", r"\d{4}-\d\d-\d\d(T[0-9:]{8}Z)?", "(?i:hello|w.*d){1,3}[^a-z]")
LARGE = (0, -1, 1, 3, 10**6, 10**18, 10**40, 0.001, 1e300, "", "a" * 3000, "#", NODE_NAME, None, True, [], {}, [[]])
JOINS = ("allOf", "anyOf", "oneOf", "not", "items", "prefixItems")
KEYWORDS = ("$ref", "maxItems", "minItems", "maxLength", "multipleOf", "maximum", "pattern", "format")
MOST = 500
"""Objects and arrays of a schema that are enough: copies of copies would fill the memory of this process first."""
ELEMENTS_TEMPLATE = TOOL_TEMPLATE.replace("<tool_call>", "<tool_call><function=<parameter=")
"""Of calls whose arguments are elements."""
PIECES = ("{1000}", "{0,99999}", "(a|b)*", "start", "[^", ".*", "&", "~")


def places(value, found):
    """Every object and array in a value."""
    if isinstance(value, dict | list):
        found.append(value)
        for inner in value.values() if isinstance(value, dict) else value:
            places(inner, found)
    return found


def mutated_schema(rng):
    """The schema with some parts replaced, moved into one another, repeated or left out."""
    schema = copy.deepcopy(NODE)
    for _ in range(rng.randint(1, 6)):
        inside = places(schema, [])
        if len(inside) > MOST:
            break
        target, other = rng.choice(inside), copy.deepcopy(rng.choice(inside))
        keys = list(target) if isinstance(target, dict) else list(range(len(target)))
        key = rng.choice(keys) if keys else None
        kind = rng.randrange(6)
        if key is None:
            continue
        if kind == 0:
            target[key] = copy.deepcopy(rng.choice(LARGE))
        elif kind == 1:
            target[key] = other
        elif kind == 2:
            del target[key]
        elif kind == 3 and isinstance(target, list):
            target.extend([other] * rng.choice([1, 3, 50, 300]))
        elif kind == 4:
            target[key] = {rng.choice(JOINS): [other] * rng.randint(1, 9)}
        elif isinstance(target, dict):
            target[rng.choice(KEYWORDS)] = copy.deepcopy(rng.choice(LARGE))
    return schema


def mutated_text(rng, text):
    """A text with characters changed and stretches repeated, moved or left out."""
    for _ in range(rng.randint(1, 5)):
        start, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        part = text[start:end]
        text = rng.choice(
            [
                text[:start] + text[end:], text[:start] + part[::-1],
                text[:end] + part * rng.choice([1, 2, 40]) + text[end:],
                text[:start] + rng.choice("(){}[]|*+?\\\"/:=%#\n\x00é") + text[start:],
                text[:start] + rng.choice(PIECES) + text[end:],
            ]
        ) or "a"  # fmt: skip
    return text[:20_000]


def order(rng):
    """A request, and what the name of the refused field begins with."""
    kind = rng.randrange(5)
    if kind == 0:
        schema = {"name": "a", "schema": mutated_schema(rng), "strict": rng.random() < 0.5}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}, "response_format"
    if kind < 3:
        tools = [
            {"type": "function", "function": {"name": f"f{number}", "parameters": mutated_schema(rng)}}
            for number in range(rng.randint(1, 3))
        ]
        if kind == 2:
            tools = json.loads(json.dumps(tools).replace("function", "functio", rng.randint(0, 2)))
        return {"tools": tools, "tool_choice": rng.choice(["required", "auto"])}, "tool"
    text = mutated_text(rng, rng.choice(GRAMMARS if kind == 3 else PATTERNS))
    return {"structured_outputs": {"grammar" if kind == 3 else "regex": text}}, "structured_outputs"


def resident() -> float:
    """Megabytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


@pytest.mark.parametrize(
    ("count", "template"),
    [
        (150, TOOL_TEMPLATE), pytest.param(10_000, TOOL_TEMPLATE, marks=pytest.mark.slow),
        pytest.param(2_000, ELEMENTS_TEMPLATE, marks=pytest.mark.slow),
    ],
    ids=["150", "10000", "2000, elements"],
)  # fmt: skip
def test_whatever_is_asked_the_server_lives(byte_tokenizer, count, template):
    service = tiny_service(byte_tokenizer, policy=False, template=template, max_rows=8)
    statuses, slowest, before = dict.fromkeys((200, 400, 413, 429), 0), 0.0, resident()
    with running(service) as address, httpx.Client(timeout=120) as http:

        def one(seed):
            body, param = order(random.Random(seed))
            body |= {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 3, "seed": seed}
            begun = time.monotonic()
            answer = http.post(f"{address}/v1/chat/completions", json=body)
            assert answer.status_code in statuses, (seed, answer.text)
            if answer.status_code != 200:
                error = answer.json()["error"]
                assert set(error) == {"message", "type", "param", "code"}, seed
                long = error["code"] in ("context_length_exceeded", "body_too_large")
                assert long or error["param"].startswith(param), (seed, error)
            return answer.status_code, time.monotonic() - begun

        with ThreadPoolExecutor(4) as pool:
            for status, seconds in pool.map(one, range(count)):
                statuses[status] += 1
                slowest = max(slowest, seconds)
                if sum(statuses.values()) % 500 == 0:
                    print(statuses, f"slowest {slowest:.2f} s, {resident() - before:+.0f} MB", flush=True)
        until(lambda: gauges(service) == (0, 0, 0))
        assert http.get(f"{address}/health").status_code == 200
        assert one(count)[0] in statuses
    print(f"{count}: {statuses}, slowest {slowest:.2f} s, {resident() - before:+.0f} MB")
    assert statuses[200] > count / 20
    assert statuses[400] > count / 4
    assert resident() - before < 700
