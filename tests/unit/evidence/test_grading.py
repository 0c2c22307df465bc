"""Numbers and programs in replies."""

import pytest

from evidence.studies.grading import code_is_complete, gold_number, number_of, program_of, same_number
from solm.core.errors import DataError


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("He has 3 left, then 5.\n#### 18", 18), ("#### $1,234.50.", 1234.5), ("**#### -5**", -5),
        ("#### 70,000\nThat is 5 more.", 70000), ("#### Step 1: add 2\nSo 9.\n#### Answer: 11", 11),
        (r"So \boxed{42} of 7", 42), (r"\boxed{\$3.50}", 3.5), ("The answer is: 7 apples, not 8", 7),
        ("answer: **$18** a day", 18), ("first 5, then 12.", 12), ("x-3", 3), ("= 3-4", 4), ("total: −6", -6),
        ("(-3)", -3), (".5", 0.5), ("2 days, 1,000,000 left", 1e6), ("costs $18.", 18), ("no number", None), ("", None),
    ],
)  # fmt: skip
def test_the_number_that_a_text_arrives_at(text, number):
    assert number_of(text) == number


def test_numbers_are_compared_by_value():
    assert same_number("#### 18.00", 18)
    assert not same_number("#### 18.5", 18)
    assert not same_number("I do not know", 18)
    assert gold_number("2 + 3 = <<2+3=5>>5\n#### 1,005") == 1005
    for bad in ("5", "####", "5 #### five"):
        with pytest.raises(DataError, match="no number after ####"):
            gold_number(bad)


PROMPT = 'import math\n\n\ndef half(x):\n    """Half of x."""\n'
TEST = "def check(f):\n    assert f(4) == 2\n"


@pytest.mark.parametrize(
    "reply",
    [
        "```python\ndef half(x):\n    return math.floor(x / 2)\n```\nIt halves.",
        "An example:\n```\nhalf(4)\n```\nThe function:\n```py\ndef half(x):\n    return x / 2\n```",
        "```python\ndef half(x):\n    return x / 2",  # cut at the longest length
        "def half(x):\n    return x / 2",
        "    return x / 2",
        "```\n    return x / 2\n```",
    ],
)
def test_replies_become_programs_that_pass(reply):
    names = {}
    exec(program_of(reply, PROMPT, "half", TEST), names)  # which ends with the test
    assert names["half"](6) == 3


@pytest.mark.parametrize("reply", ["```python\ndef half(x):\n    return x\n```", "    return x", "I cannot.", ""])
def test_replies_that_are_wrong_become_programs_that_fail(reply):
    with pytest.raises((AssertionError, SyntaxError)):
        exec(program_of(reply, PROMPT, "half", TEST), {})


def test_code_is_complete_with_its_closing_fence():
    assert not code_is_complete("Here:\n```python\ndef f(): pass\n")
    assert code_is_complete("```python\ndef f(): pass\n```")
