"""Replies that begin with thinking: the marks around it, and the reader that splits a reply at them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from solm.runtime.reply import TextStream, hidden_token, overlap

_TAIL = 32
"""Tokens at the end of a prompt in which a mark and the white space after it have room, also where bytes are tokens."""


class Marks(NamedTuple):
    """What stands before and after the thinking of a reply."""

    begins: str
    ends: str


FORMATS = (Marks("<think>", "</think>"), Marks("[THINK]", "[/THINK]"))
"""Qwen 3, QwQ, SmolLM3, DeepSeek R1 and what was distilled from it; Magistral. A chat template that takes the thinking
out of earlier replies, or puts it there, has the mark at its end."""


def marks_of(template: object) -> Marks | None:
    """The marks that a chat template knows; None: replies do not think, or in a form that is not known here."""
    return next((marks for marks in FORMATS if isinstance(template, str) and marks.ends in template), None)


def hidden_marks(tokenizer: Any, marks: Marks) -> list[int]:
    """The tokens of the marks, where text does not show them."""
    return [token for token in (hidden_token(tokenizer, mark) for mark in marks) if token is not None]


class ThinkingReader:
    """Splits a reply, which comes in pieces of any length, into its thinking and the answer after it.

    White space around the thinking belongs to neither. A reply that does not think is all answer, as it is.

    thinking: whether what comes next is thinking. opening: the token of the mark at its beginning, with which the
    reply may still begin; None where it may not, or where the mark is no single token.
    """

    def __init__(self, marks: Marks, thinking: bool = False, opening: int | None = None):
        self.thinking, self.opening = thinking, opening
        self._marks, self._text = marks, ""
        self._undecided, self._begun = True, False
        """Whether the reply may still begin with the mark; whether the thinking, and later the answer after it, had
        other text than white space."""
        self._trims = thinking

    @classmethod
    def of(cls, tokenizer: Any, ids: "Sequence[int] | np.ndarray") -> "ThinkingReader | None":
        """The reader of a reply to prompt ids [C]; None where the model's chat template knows no thinking. Templates
        may open the thinking at the end of a prompt, or close it there, so that the reply is all answer."""
        marks = None if tokenizer is None else marks_of(tokenizer.chat_template)
        if marks is None:
            return None
        tail = str(tokenizer.decode(list(ids[-_TAIL:]))).rstrip()
        backend = getattr(tokenizer, "backend_tokenizer", None)
        opening = None if backend is None or tail.endswith(marks) else backend.token_to_id(marks.begins)
        return cls(marks, tail.endswith(marks.begins), opening)

    def read(self, tokenizer: Any, ids: list[int]) -> tuple[str, str]:
        """The thinking and the answer of a whole reply ids, without special tokens."""
        return self.push(TextStream(tokenizer, True, hidden_marks(tokenizer, self._marks)).whole(ids), last=True)

    def push(self, text: str, last: bool = False) -> tuple[str, str]:
        """What more text of the reply adds to its thinking and to its answer. last: the reply ends with it."""
        self._text += text
        thought = ""
        if self._undecided:
            bare = self._text.lstrip()
            if self._marks.begins.startswith(bare) and bare != self._marks.begins and not last:
                return "", ""
            self._undecided, self.opening = False, None
            if bare.startswith(self._marks.begins):  # also where the template opened it already
                self.thinking = self._trims = True
                self._text = bare.removeprefix(self._marks.begins)
        if self.thinking:
            thought, ended, rest = self._text.partition(self._marks.ends)
            sure = len(thought) if ended or last else len(thought) - overlap(thought, self._marks.ends)
            sure = len(thought[:sure].rstrip())
            self._text = rest if ended else thought[sure:]
            thought = self._trimmed(thought[:sure])
            if not ended:
                return thought, ""
            self.thinking = self._begun = False
        answer, self._text = self._text, ""
        return thought, self._trimmed(answer)

    def _trimmed(self, text: str) -> str:
        if self._trims and not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        return text
