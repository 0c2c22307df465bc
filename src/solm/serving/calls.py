"""From the text of a reply to its calls of tools, piece by piece."""

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from solm.serving.conversation import CALL_BEGINS, CALL_ENDS
from solm.serving.rows import overlap

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"arguments"\s*:\s*(?=\{)')
_STRUCTURE = re.compile(r'[{}"\\]')
_SPACE = " \n\r\t"


@dataclass(frozen=True)
class CallPart:
    """A piece of a call: `identity` and `name` where it begins; then more of the JSON of its arguments."""

    index: int
    arguments: str = ""
    name: str | None = None
    identity: str | None = None

    def body(self) -> dict[str, object]:
        """As a streamed delta has it."""
        function = {"arguments": self.arguments} | ({} if self.name is None else {"name": self.name})
        begins = {} if self.identity is None else {"id": self.identity, "type": "function"}
        return {"index": self.index, "function": function} | begins


class CallReader:
    """Splits a reply into content and calls of the tools `names`. What is no such call stays content; the white space
    around calls does not."""

    def __init__(self, names: frozenset[str]):
        self._names, self._text, self._read = names, "", self._content
        self.calls = 0
        self._depth, self._quoted, self._escaped = 0, False, False

    def push(self, text: str) -> list[str | CallPart]:
        """What `text` makes known: pieces of content, and of calls."""
        self._text += text
        found = list[str | CallPart]()
        while (read := self._read) is not None and read(found):
            pass
        return _merged(found)

    def finish(self) -> list[str | CallPart]:
        """What is left at the end of the reply: a call that did not begin properly is content."""
        left, self._text = self._text, ""
        if self._read == self._head:
            return [CALL_BEGINS + left]
        if self._read == self._content:
            return [left] if left and not (self.calls and left.isspace()) else []
        return []

    def _content(self, found: list[str | CallPart]) -> bool:
        """Text up to a call. The readers say whether to go on with the next one."""
        before, begins, after = self._text.partition(CALL_BEGINS)
        if begins:
            self._say(found, before.rstrip(_SPACE))
            self._text, self._read = after, self._head
            return True
        sure = len(before) - overlap(before, CALL_BEGINS)
        sure = len(before[:sure].rstrip(_SPACE))
        self._say(found, before[:sure])
        self._text = before[sure:]
        return False

    def _say(self, found: list[str | CallPart], text: str) -> None:
        text = text.lstrip(_SPACE) if self.calls else text
        if text:
            found.append(text)

    def _head(self, found: list[str | CallPart]) -> bool:
        """The name of a call."""
        match = _HEAD.match(self._text)
        if match is not None and match[1] in self._names:
            found.append(self._begun(match[1]))
            self._text, self._read = self._text[match.end() :], self._arguments
            self._depth, self._quoted, self._escaped = 0, False, False
            return True
        inner, ends, after = self._text.partition(CALL_ENDS)
        if not ends:
            return False
        self._text, self._read = after, self._content
        found += self._other(inner)
        return True

    def _begun(self, name: str, arguments: str = "") -> CallPart:
        self.calls += 1
        return CallPart(self.calls - 1, arguments, name, f"call_{secrets.token_hex(12)}")

    def _other(self, inner: str) -> Iterator[str | CallPart]:
        """A complete call whose fields are in another order, or text that is none."""
        try:
            body = json.loads(inner)
            name, arguments = body["name"], body["arguments"]
        except (ValueError, KeyError, TypeError, RecursionError):
            name = arguments = None
        if isinstance(name, str) and name in self._names and isinstance(arguments, dict):
            yield self._begun(name, json.dumps(arguments, ensure_ascii=False))
        else:
            yield CALL_BEGINS + inner + CALL_ENDS

    def _arguments(self, found: list[str | CallPart]) -> bool:
        """The JSON of an object, to its last brace."""
        place = 0
        while place < len(self._text):
            if self._escaped:
                self._escaped, place = False, place + 1
                continue
            match = _STRUCTURE.search(self._text, place)
            if match is None:
                place = len(self._text)
                break
            place, sign = match.end(), match[0]
            if sign == "\\":
                self._escaped = self._quoted
            elif sign == '"':
                self._quoted = not self._quoted
            elif not self._quoted:
                self._depth += 1 if sign == "{" else -1
                if self._depth == 0:
                    self._read = self._tail
                    break
        if place:
            found.append(CallPart(self.calls - 1, self._text[:place]))
        self._text = self._text[place:]
        return self._read == self._tail

    def _tail(self, found: list[str | CallPart]) -> bool:
        """What is left of a call, up to its end or the beginning of the next one."""
        ends = [(self._text.find(sign), sign) for sign in (CALL_ENDS, CALL_BEGINS) if sign in self._text]
        if not ends:
            return False
        place, sign = min(ends)
        self._text = self._text[place + (len(sign) if sign == CALL_ENDS else 0) :]
        self._read = self._content
        return True


def _merged(parts: list[str | CallPart]) -> list[str | CallPart]:
    """Neighbouring pieces of the same call, or of content, as one."""
    found: list[str | CallPart] = []
    for part in parts:
        last = found[-1] if found else None
        if isinstance(part, str) and isinstance(last, str):
            found[-1] = last + part
        elif isinstance(part, CallPart) and isinstance(last, CallPart) and part.index == last.index:
            found[-1] = CallPart(last.index, last.arguments + part.arguments, last.name, last.identity)
        else:
            found.append(part)
    return found
