"""From the text of a reply to its calls of tools, piece by piece."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from solm.serving.call_arguments import Arguments, Braces, ElementArguments, JsonArguments, Schema
from solm.serving.call_forms import CallForm
from solm.serving.rows import overlap

_SPACE = " \n\r\t"
_LONGEST_HEAD = 100
"""Characters of a head that `CallForm.opens` ends: a name has 64 at most."""


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
    """Splits a reply into content and calls. What is no call of one of the tools stays content; the white space around
    calls does not. tools: by name the schema of their parameters."""

    def __init__(self, form: CallForm, tools: Mapping[str, Schema]):
        self._form, self._tools, self._text, self._read = form, tools, "", self._content
        self._bare = form.bare
        """Whether a call may begin here without its mark."""
        self._opened, self._braces, self._seen = "", Braces(), 0
        """Of a call whose name is not known: what came before it, its braces, and how much of it they have seen."""
        self._arguments: Arguments = JsonArguments(False)
        self.calls = 0

    def push(self, text: str) -> list[str | CallPart]:
        """What `text` makes known: pieces of content, and of calls."""
        self._text += text
        found = list[str | CallPart]()
        while self._read(found):
            pass
        return _merged(found)

    def finish(self) -> list[str | CallPart]:
        """What is left at the end of the reply: a call that did not begin properly is content."""
        left, self._text = self._text, ""
        if self._read == self._head:
            return [self._opened + left]
        if self._read == self._content:
            left = left.lstrip(_SPACE) if self.calls else left
            return [left] if left else []
        return []

    def _content(self, found: list[str | CallPart]) -> bool:
        """Text up to a call. The readers say whether to go on with the next one."""
        if self._bare:
            place = len(self._text) - len(self._text.lstrip(_SPACE + ";" if self.calls else _SPACE))
            if place == len(self._text):
                return False
            self._bare = False
            if self._text[place] == "{":
                self._open(self._text[:place], self._text[place:])
                return True
        before, begins, after = self._text.partition(self._form.begins)
        if begins:
            self._say(found, before.rstrip(_SPACE))
            self._open(begins, after)
            return True
        sure = len(before) - overlap(before, self._form.begins)
        sure = len(before[:sure].rstrip(_SPACE))
        self._say(found, before[:sure])
        self._text = before[sure:]
        return False

    def _open(self, opened: str, rest: str) -> None:
        """A call may begin with `rest`; if not, `opened` is content."""
        self._opened, self._text, self._read = opened, rest, self._head
        self._braces, self._seen = Braces(), 0

    def _say(self, found: list[str | CallPart], text: str) -> None:
        text = text.lstrip(_SPACE) if self.calls else text
        if text:
            found.append(text)

    def _head(self, found: list[str | CallPart]) -> bool:
        """The name of a call."""
        match = self._form.heads.match(self._text)
        if match is not None and match[1] in self._tools:
            found.append(self._begun(match[1]))
            self._text, self._read = self._text[match.end() :], self._body
            elements = self._form.elements
            self._arguments = (
                JsonArguments(self._form.around)
                if elements is None
                else ElementArguments(elements, self._tools[match[1]])
            )
            return True
        if self._form.ends:
            inner, ends, after = self._text.partition(self._form.ends)
            if not ends:
                return False
            self._text, self._read = after, self._content
            self._other(found, inner, ends)
            return True
        begun = self._text.lstrip(_SPACE + "[,")
        if not begun:
            return False
        if self._form.opens:
            name, opens, arguments = self._text.partition(self._form.opens)
            if (not opens and len(name) < _LONGEST_HEAD) or (opens and not arguments.strip()):
                return False
        end = self._braces.end(self._text, self._seen) if begun[0] == "{" else 0
        if end is None:
            self._seen = len(self._text)
            return False
        inner, self._text = self._text[:end], self._text[end:]
        self._read = self._tail if self._other(found, inner, "") else self._content
        return True

    def _begun(self, name: str, arguments: str = "") -> CallPart:
        self.calls += 1
        length = self._form.identity
        identity = f"call_{secrets.token_hex(12)}" if length is None else secrets.token_hex(length)[:length]
        return CallPart(self.calls - 1, arguments, name, identity)

    def _other(self, found: list[str | CallPart], inner: str, ends: str) -> bool:
        """A complete call whose fields are in another order; else it is content. Returns whether it is a call."""
        try:
            body = json.loads(inner.lstrip(_SPACE + "[,"))
            name, arguments = body["name"], body.get("arguments", body.get("parameters"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            name = arguments = None
        if isinstance(name, str) and name in self._tools and isinstance(arguments, dict):
            found.append(self._begun(name, json.dumps(arguments, ensure_ascii=False)))
            return True
        found.append(self._opened + inner + ends)
        return False

    def _body(self, found: list[str | CallPart]) -> bool:
        """The arguments of a call."""
        said, self._text, done = self._arguments.push(self._text)
        if said:
            found.append(CallPart(self.calls - 1, said))
        if done:
            self._read = self._tail
        return done

    def _tail(self, found: list[str | CallPart]) -> bool:
        """What is left of a call, up to its end or the beginning of the next one."""
        follows = dict(self._form.follows)
        if not follows:
            self._read, self._bare = self._content, self._form.bare
            return True
        ends = [(self._text.find(sign), sign) for sign in (*follows, self._form.begins) if sign in self._text]
        if not ends:
            return False
        place, sign = min(ends)
        if follows.get(sign):
            self._open(sign, self._text[place + len(sign) :])
        else:
            self._text = self._text[place + (len(sign) if sign in follows else 0) :]
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
