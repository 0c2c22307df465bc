"""Grammars tried in a process of their own: what it says, and that it ends."""

import os

import pytest

pytest.importorskip("llguidance")

from solm.runtime.grammar_trial import GrammarTooSlowError, GrammarTrial
from solm.runtime.grammars import Grammar, GrammarError

ENDLESS = Grammar.json_schema(
    {"allOf": [{"type": "string", "pattern": f"a.{{{distance}}}b"} for distance in range(3, 40)]}
)
"""What is compiled for hours, within all limits of the library."""


@pytest.fixture
def trial():
    found = GrammarTrial(300)
    yield found
    found.close()


def test_what_is_wrong_is_said_and_what_is_right_is_not(trial):
    trial.run(Grammar.json_object().text, 60)
    first = trial.process
    with pytest.raises(GrammarError, match="does not exist"):
        trial.run(Grammar.json_schema({"$ref": "#/$defs/none"}).text, 60)
    trial.run(Grammar.trusted('start: "a" <[299]>').text, 60)  # a token of the model's
    assert trial.process is first


def test_gbnf_is_converted_there_and_may_take_no_longer(trial):
    assert 'start: "a"' in trial.converted('root ::= "a"', 60).replace("\n", " ").replace("  ", " ")
    with pytest.raises(GrammarError, match="the grammar cannot be read"):
        trial.converted("root ::= (", 60)
    with pytest.raises(GrammarTooSlowError):
        trial.converted("root ::= " + ". " * 20_000, 0.001)
    assert trial.converted('root ::= "b"', 60)


def test_what_takes_too_long_is_ended_and_the_next_one_is_compiled(trial):
    trial.run(Grammar.regex("a").text, 60)
    ended = trial.process
    with pytest.raises(GrammarTooSlowError, match=r"not compiled in 0\.5 s"):
        trial.run(ENDLESS.text, 0.5)
    assert ended.exitcode is not None
    with pytest.raises(ProcessLookupError):
        os.kill(ended.pid, 0)
    with pytest.raises(GrammarTooSlowError, match="not compiled in time"):
        trial.run(Grammar.regex("a").text, 0)
    trial.run(Grammar.regex("a").text, 60)


def test_a_process_that_ends_by_itself_is_a_grammar_that_is_refused(trial):
    trial.run(Grammar.regex("a").text, 60)
    trial.pipe.send("no question")
    with pytest.raises(GrammarError, match="MiB of memory"):
        trial.run(Grammar.regex("b").text, 60)
    trial.run(Grammar.regex("b").text, 60)
