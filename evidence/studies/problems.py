"""Problems and prompts whose replies are graded, read from files."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evidence.studies.grading import MARK, code_is_complete, gold_number, program_of, same_number
from evidence.studies.sandbox import Sandbox
from solm.core.errors import DataError, SolmError
from solm.evaluation.texts import read_text
from solm.runtime.prompts import Message

BUILTIN = "builtin"
"""Of chat: the prompts beside this file."""
_NUMBER_ASKED = f"Solve this in a few short steps. End with a line that has {MARK} and the number alone."
_CODE_ASKED = "Complete this Python function. Answer with the whole function in one block of code, and nothing else."


@dataclass(frozen=True)
class Problem:
    """messages: what the model is asked. complete: whether a reply needs no more tokens. solved: whether a reply solves
    it; None where it is not graded. key: what `solved` goes by."""

    messages: list[Message]
    complete: Callable[[str], bool] = lambda reply: False
    solved: Callable[[str], bool] | None = None
    key: str = ""

    @property
    def prompt(self) -> str | list[Message]:
        """The messages as models without a chat template take them, too: one from a user is a text."""
        first, *others = self.messages
        return first["content"] if first["role"] == "user" and not others else self.messages


def gsm8k(path: Path) -> list[Problem]:
    """Problems in JSON lines with `question` and `answer`, graded by the number that the answer has after ``####``."""

    def problem(record: dict[str, Any]) -> Problem:
        question, answer = _texts(record, "question", "answer")
        gold = gold_number(answer)
        asked = _user(f"{question}\n\n{_NUMBER_ASKED}")
        return Problem(asked, solved=lambda reply: same_number(reply, gold), key=answer)

    return _read(path, _json(problem))


def humaneval(path: Path, sandbox: Sandbox | None = None) -> list[Problem]:
    """Problems in JSON lines with `prompt`, `entry_point` and `test`: the beginning of a program, the function that it
    ends with, and the definition of a function ``check`` of that. Replies run in `sandbox`; not graded without."""

    def problem(record: dict[str, Any]) -> Problem:
        prompt, name, test = _texts(record, "prompt", "entry_point", "test")

        def solved(reply: str) -> bool:
            assert sandbox is not None
            return sandbox.run(program_of(reply, prompt, name, test)) == "passed"

        asked = _user(f"{_CODE_ASKED}\n\n```python\n{prompt.strip()}\n```")
        graded = None if sandbox is None else solved
        return Problem(asked, code_is_complete, graded, key="\0".join((prompt, name, test)))

    return _read(path, _json(problem))


def chat(source: str) -> list[Problem]:
    """Prompts, not graded: a line each of a text file, or JSON lines with `messages`, or with `prompt` or `question`;
    ``builtin`` has prompts of many kinds."""
    path = Path(__file__).with_name("chat_prompts.txt") if source == BUILTIN else Path(source)
    return _read(path, _json(_conversation) if path.suffix == ".jsonl" else lambda line: Problem(_user(line)))


def fingerprint(problems: Sequence[Problem]) -> str:
    """Of what is asked and how it is graded, in 16 hexadecimal digits."""
    asked = json.dumps([[problem.messages, problem.key] for problem in problems], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _conversation(record: dict[str, Any]) -> Problem:
    if "messages" not in record:
        name = next((name for name in ("prompt", "question") if name in record), "prompt")
        return Problem(_user(*_texts(record, name)))
    messages = record["messages"]
    if not isinstance(messages, list) or not messages:
        raise DataError("messages must be a list of at least one message")
    for message in messages:
        if not isinstance(message, dict):
            raise DataError(f"a message must be an object with role and content, got {type(message).__name__}")
        _texts(message, "role", "content")
    return Problem(messages)


def _texts(record: dict[str, Any], *names: str) -> list[str]:
    """The fields of `record` called `names`; raises `DataError` where one is no text or empty."""
    for name in names:
        if not isinstance(record.get(name), str) or not record[name].strip():
            raise DataError(f"expected an object with text in the field {name!r}")
    return [record[name] for name in names]


def _json(made: Callable[[dict[str, Any]], Problem]) -> Callable[[str], Problem]:
    """What makes a problem of a line of JSON."""

    def read(line: str) -> Problem:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"not JSON ({getattr(error, 'msg', error)})") from error
        if not isinstance(record, dict):
            raise DataError(f"expected an object, got {type(record).__name__}")
        return made(record)

    return read


def _read(path: Path, made: Callable[[str], Problem]) -> list[Problem]:
    """The problem in every line that is not blank; raises `DataError` with file and line."""
    found = []
    for number, line in _lines(path):
        try:
            found.append(made(line))
        except SolmError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
    if not found:
        raise DataError(f"{path} holds no problem")
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(read_text(path).split("\n"), start=1) if line.strip())
