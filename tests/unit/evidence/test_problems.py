"""Problem files: what is asked, how it is graded, and what is said of malformed lines."""

import json

import pytest

from evidence.studies.problems import BUILTIN, chat, fingerprint, gsm8k, humaneval
from solm.core.errors import DataError

CODE = {"prompt": "def one():\n", "entry_point": "one", "test": "def check(f):\n    assert f() == 1\n"}


def written(path, *records):
    path.write_text("\n".join(record if isinstance(record, str) else json.dumps(record) for record in records))
    return path


class Runs:
    """In place of a sandbox: keeps what it is given."""

    def run(self, program):
        self.program = program
        return "passed" if "return 1" in program else "failed"


def test_problems_are_asked_and_graded(tmp_path):
    (asked,) = gsm8k(written(tmp_path / "a.jsonl", {"question": "2 + 3?", "answer": "It is 5.\n#### 5"}, ""))
    assert asked.messages[0]["role"] == "user"
    assert asked.messages[0]["content"].startswith("2 + 3?")
    assert asked.solved("so #### 5")
    assert not asked.solved("#### 6")
    assert not asked.complete("#### 5")
    runs = Runs()
    (asked,) = humaneval(written(tmp_path / "b.jsonl", CODE), runs)
    assert "```python\ndef one():\n```" in asked.messages[0]["content"]
    assert asked.solved("    return 1")
    assert not asked.solved("    return 2")
    assert runs.program.endswith("check(one)\n")
    assert asked.complete("```\n    return 1\n```")
    assert humaneval(tmp_path / "b.jsonl")[0].solved is None


def test_chat_prompts_are_lines_or_records(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    records = [{"messages": turns}, {"prompt": "one"}, {"question": "two", "answer": "2"}]
    asked = chat(str(written(tmp_path / "a.jsonl", *records)))
    assert [problem.messages for problem in asked] == [
        turns, [{"role": "user", "content": "one"}], [{"role": "user", "content": "two"}],
    ]  # fmt: skip
    asked = chat(str(written(tmp_path / "a.txt", "Why?", "", "How?")))
    assert [problem.messages[0]["content"] for problem in asked] == ["Why?", "How?"]
    ours = chat(BUILTIN)
    assert len({problem.messages[0]["content"] for problem in ours}) == 200
    assert asked[0].prompt == "Why?"
    assert fingerprint(ours) != fingerprint(ours[1:])
    right, wrong = (
        fingerprint(gsm8k(written(tmp_path / "c.jsonl", {"question": "1 + 1?", "answer": f"#### {gold}"})))
        for gold in (2, 3)
    )
    assert right != wrong, "it is of the answers, too"


@pytest.mark.parametrize(
    ("read", "line", "said"),
    [
        (gsm8k, "{", "not JSON"), (gsm8k, "[1]", "expected an object, got list"),
        (gsm8k, {"question": "?"}, "text in the field 'answer'"), (gsm8k, {"question": " ", "answer": "1"}, "question"),
        (gsm8k, {"question": "?", "answer": "1"}, "no number after ####"),
        (humaneval, {**CODE, "test": 3}, "text in the field 'test'"), (humaneval, {"prompt": "x"}, "'entry_point'"),
        (chat, {"text": "?"}, "'prompt'"), (chat, {"messages": []}, "at least one message"),
        (chat, {"messages": [{"role": "user"}]}, "'content'"), (chat, {"messages": ["?"]}, "object with role"),
    ],
)  # fmt: skip
def test_a_malformed_line_is_named(read, line, said, tmp_path):
    good = {"question": "?", "answer": "#### 1", **CODE, "prompt": "p"}
    path = written(tmp_path / "bad.jsonl", good, "", line)
    with pytest.raises(DataError, match=r"bad.jsonl, line 3: .*" + said.replace("#", r"\#")):
        read(path if read is not chat else str(path))
