"""A scripted conversation: what commands change, what the model is shown, and what a mistake leaves as it was."""

import io
import signal
import sys

import pytest

from solm.cli.chat import Talk
from solm.cli.main import main
from solm.core.errors import BudgetError, ContextLengthError

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
GREEDY = {"max_new_tokens": 12, "seed": 0}
LONG = "How many pages does a step read, and who decides that? " * 2


@pytest.fixture
def talk(policy_lm, monkeypatch):
    monkeypatch.setattr(policy_lm.tokenizer, "chat_template", TEMPLATE)
    return Talk(policy_lm, None, GREEDY)


@pytest.fixture
def chat(tiny_folder, monkeypatch):
    """The command with lines on standard input; returns its exit code."""
    (tiny_folder / "chat_template.jinja").write_text(TEMPLATE)

    def run(lines: str | bytes, *options: str) -> int:
        arguments = ["chat", "--model", str(tiny_folder), "--backend", "torch", "--max-new-tokens", "8", *options]
        monkeypatch.setattr(sys, "argv", ["solm", *arguments])
        piped = io.StringIO(lines) if isinstance(lines, str) else io.TextIOWrapper(io.BytesIO(lines), "utf-8")
        monkeypatch.setattr(sys, "stdin", piped)
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0

    return run


def test_a_conversation_from_a_pipe(chat, capsys):
    lines = f"hello\n\n/budget attention=0.5\n{LONG}\n/budget\nagain\n/budget nine\n/nope\n"
    lines += "/system Be brief.\n/quit\nx\n"
    assert chat(lines) == 0
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out
    facts = [line for line in shown.err.splitlines() if line.startswith("speed: ")]
    assert len(facts) == 3  # nothing after /quit
    assert all("tokens/s" in line and "ms per token" in line for line in facts)
    asked = [line for line in shown.err.splitlines() if line.startswith(("requested: ", "realised: "))]
    assert len(asked) == 2, "a dense reply has nothing to tell"
    assert asked[0].startswith("requested: attention=0.5: ")
    assert "policy static, budget attention=0.5" in shown.err
    assert "/budget: budget 'nine' is not a number" in shown.err
    assert "unknown command '/nope'" in shown.err
    assert "a new conversation" in shown.err


def test_a_line_that_is_not_utf8_is_refused_alone(chat, capsys):
    assert chat(b"ab\xff\n/system \xff\nhello\n") == 0
    shown = capsys.readouterr().err
    assert shown.count("this line is not valid Unicode text") == 2
    assert shown.count("tokens/s") == 1


def test_ctrl_c_ends_a_reply(chat, capsys, monkeypatch):
    stream = Talk.stream

    def interrupted(self, said):
        for token in stream(self, said):
            signal.raise_signal(signal.SIGINT)
            yield token

    monkeypatch.setattr(Talk, "stream", interrupted)
    assert chat("hello\n") == 0
    assert "; stopped" in capsys.readouterr().err


def test_the_model_is_shown_the_conversation_and_reads_only_what_is_new(talk, monkeypatch):
    talk.start("Be brief.")
    first = [token.id for token in talk.stream(LONG)]
    read = []
    session = type(talk.lm.session())
    prefill = session.prefill
    monkeypatch.setattr(
        session, "prefill", lambda self, tokens, *rest: (read.append(tokens.shape[1]), prefill(self, tokens, *rest))[1]
    )
    said = list(talk.stream("And then?"))
    reply = str(talk.lm.tokenizer.decode(first, skip_special_tokens=True))
    assert talk.messages[:4] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": LONG},
        {"role": "assistant", "content": reply},
        {"role": "user", "content": "And then?"},
    ]
    assert sum(read) < talk.read - 80
    # A conversation that was read in parts gives what one read at once gives.
    shown = talk.lm.tokenizer.apply_chat_template(talk.messages[:4], add_generation_prompt=True, return_tensors="pt")
    whole = talk.lm.generate(shown["input_ids"], **GREEDY)
    assert [token.id for token in said] == [token.id for token in whole.tokens]


def test_a_reply_that_is_stopped_is_kept_as_far_as_it_came(talk):
    reply = talk.stream(LONG)
    begun = [next(reply) for _ in range(3)]
    reply.close()
    assert talk.messages[-1]["role"] == "assistant"
    assert talk.messages[-1]["content"] == talk.lm.tokenizer.decode(
        [token.id for token in begun], skip_special_tokens=True
    )
    assert len(list(talk.stream("go on"))) > 0


def test_mistakes_leave_the_conversation_as_it_was(talk):
    list(talk.stream("hello"))
    messages = list(talk.messages)
    with pytest.raises(BudgetError):
        talk.set_budget("7")
    with pytest.raises(ContextLengthError):
        list(talk.stream("x" * 600))
    assert talk.messages == messages
    assert (talk.budget, talk.policy) == (None, None)


def test_a_budget_ends_dense_replies(policy_lm):
    talk = Talk(policy_lm, "dense", GREEDY)
    assert talk.setting == "dense"
    assert talk.set_budget("mlp=0.7") == "policy policy, budget mlp=0.7"
