"""Grades of replies: the number that one arrives at, and the program that it amounts to."""

import re

from solm.core.errors import DataError

MARK = "####"
"""What stands before the number in a problem's answer, and should in a reply."""
_NUMBER = r"((?<![\w.])[-−]?(?:\d+(?:\.\d+)?|\.\d+))"
_UP_TO = r"[^\d\n.−-]*"
_SAID = (
    MARK + r"[^\w\n.−-]*(?:(?i:answer)\W*?)?" + _NUMBER, r"\\boxed\{" + _UP_TO + _NUMBER,
    r"(?i:answer)(?: is|:)" + _UP_TO + _NUMBER, _NUMBER,
)  # fmt: skip
"""Ways to say a number that one arrives at, the surest first; what is said last counts."""
_BLOCK = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


def number_of(text: str) -> float | None:
    """The number that a text arrives at: after ``####``, in ``\\boxed``, after *answer is*, or else the last one; None
    where there is none."""
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))|[$*\\](?!boxed)", "", text)
    for pattern in _SAID:
        found = re.findall(pattern, plain)
        if found:
            return float(found[-1].replace("−", "-"))
    return None


def same_number(reply: str, answer: float) -> bool:
    """Whether a reply arrives at `answer`."""
    found = number_of(reply)
    return found is not None and abs(found - answer) < 1e-6 * max(1.0, abs(answer))


def gold_number(answer: str) -> float:
    """The number after `MARK` in a problem's answer; raises `DataError` where none stands there."""
    found = number_of(answer.rpartition(MARK)[2]) if MARK in answer else None
    if found is None:
        raise DataError(f"the answer has no number after {MARK}")
    return found


def code_is_complete(reply: str) -> bool:
    """Whether a reply has said a whole block of code, so that nothing after it counts."""
    return reply.count("```") >= 2


def code_of(reply: str, name: str) -> str:
    """The code in a reply: of its blocks the first that defines the function `name`, else the first; without blocks the
    whole reply."""
    blocks = _BLOCK.findall(reply)
    if not blocks:
        return reply
    return next((block for block in blocks if defines(block, name)), blocks[0])


def defines(code: str, name: str) -> bool:
    return re.search(rf"^def {re.escape(name)}\b", code, re.MULTILINE) is not None


def program_of(reply: str, prompt: str, name: str, test: str) -> str:
    """A program that fails unless the function `name` of a reply passes `test`, a function ``check``.

    prompt: the beginning of a program that ends with the function's head. Code that does not define the function goes
    on where the prompt ends; what comes before the head, such as imports, holds for code that does, too.
    """
    code = code_of(reply, name)
    before = prompt
    if defines(code, name):
        head = re.search(rf"^def {re.escape(name)}\b", prompt, re.MULTILINE)
        before = prompt[: head.start()] if head is not None else ""
    return f"{before}{code}\n{test}\ncheck({name})\n"
