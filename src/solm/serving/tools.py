"""Calls of tools: the forms in which models write them, and the reader of such replies."""

import json
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from solm.runtime.batch import overlap

_SPACE = " \n\r\t"
_STRUCTURE = re.compile(r'[{}"\\]')


@dataclass(frozen=True)
class CallForm:
    """How the replies of some models call tools.

    A call is a JSON object with a name and arguments, which are in `field`. words, others: a template of this form has
    all of `words` and none of `others`. begins: the mark before a call. first, between, last: what stands before,
    between and after the calls of a reply. follows: by mark after a call whether another call follows it without
    `begins`. ends: the mark after a call, where there is one. bare: a reply may also begin with a call, and has one
    alone. identity: characters of a call's id, letters and digits, where the template insists on it.
    """

    name: str
    words: tuple[str, ...]
    others: tuple[str, ...]
    begins: str
    first: str
    between: str
    last: str
    field: str = "arguments"
    follows: tuple[tuple[str, bool], ...] = ()
    ends: str = ""
    bare: bool = False
    identity: int | None = None


FORMS = (
    CallForm(
        "hermes", ("<tool_call>",), ("<function=", "<arg_key>"), "<tool_call>", first="<tool_call>\n",
        between="\n</tool_call>\n<tool_call>\n", last="\n</tool_call>", follows=(("</tool_call>", False),),
        ends="</tool_call>",
    ),
    CallForm(
        "mistral", ("[TOOL_CALLS]",), ("[ARGS]",), "[TOOL_CALLS]", first="[TOOL_CALLS][", between=", ", last="]",
        follows=((",", True), ("]", False)), identity=9,
    ),
    CallForm(
        "llama3", ("<|start_header_id|>", '"parameters"'), (), "<|python_tag|>", first="", between="; ", last="",
        field="parameters", bare=True,
    ),
)  # fmt: skip
"""Qwen 2.5 and 3, SmolLM3, Hermes; Mistral up to version 3 of its tokenizer; Llama 3.1 to 3.3."""
_HEAD = re.compile(r'\s*(?:[\[,]\s*)?\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
"""What has been read of a call when its name (group 1) is known."""


def form_of(template: object) -> CallForm | None:
    """The form that a chat template calls tools in; None: another one, or none."""
    if not isinstance(template, str):
        return None
    for form in FORMS:
        if all(word in template for word in form.words) and not any(word in template for word in form.others):
            return form
    return None


def hidden_mark(form: CallForm, tokenizer: Any) -> int | None:
    """The token that the mark before a call is, where text does not show it; None: the mark is text like any other."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    token: int | None = None if backend is None else backend.token_to_id(form.begins)
    return None if token is None or backend.decode([token], skip_special_tokens=True) else token


class Braces:
    """Where an object ends in JSON that comes in pieces."""

    def __init__(self, depth: int = 0):
        self.depth, self._quoted, self._escaped = depth, False, False

    def end(self, text: str, start: int = 0) -> int | None:
        """The place after the last brace of the object in `text`, of which all up to `start` was seen before; None: not
        yet."""
        place = start
        while place < len(text):
            if self._escaped:
                self._escaped, place = False, place + 1
                continue
            match = _STRUCTURE.search(text, place)
            if match is None:
                return None
            place, sign = match.end(), match[0]
            if sign == "\\":
                self._escaped = self._quoted
            elif sign == '"':
                self._quoted = not self._quoted
            elif not self._quoted:
                self.depth += 1 if sign == "{" else -1
                if self.depth <= 0:
                    return place
        return None


@dataclass
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
    """Splits a reply, which comes in pieces, into content and calls.

    What is no call of one of the tools stays content; the white space around calls does not. tools: their names.
    """

    def __init__(self, form: CallForm, tools: Collection[str]):
        self._form, self._tools, self._text, self._read = form, tools, "", self._content
        self._bare = form.bare
        """Whether a call may begin here without its mark."""
        self._opened, self._braces, self._seen = "", Braces(), 0
        """Of a call whose name has not been read: what came before it, its braces, and how much of it they have seen.
        Afterwards only the braces of what is being read count."""
        self.calls = 0

    def push(self, text: str) -> list[str | CallPart]:
        """What more text of the reply adds: pieces of content, and of calls."""
        self._text += text
        parts = list[str | CallPart]()
        while self._read(parts):
            pass
        return parts

    def finish(self) -> list[str | CallPart]:
        """What is left at the end of the reply: a call that did not begin properly is content."""
        left, self._text = self._text, ""
        if self._read == self._head:
            return [self._opened + left]
        if self._read == self._content:
            left = left.lstrip(_SPACE) if self.calls else left
            return [left] if left else []
        return []

    # Each of the following reads on in `_text`, adds what it has read to `parts`, and says whether to go on with the
    # reader that it has put in `_read`; if not, more text is needed.

    def _content(self, parts: list[str | CallPart]) -> bool:
        """Text up to a call."""
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
            self._say(parts, before.rstrip(_SPACE))
            self._open(begins, after)
            return True
        sure = len(before) - overlap(before, self._form.begins)
        sure = len(before[:sure].rstrip(_SPACE))
        self._say(parts, before[:sure])
        self._text = before[sure:]
        return False

    def _open(self, opened: str, rest: str) -> None:
        """A call may begin with `rest`; if not, `opened` is content."""
        self._opened, self._text, self._read = opened, rest, self._head
        self._braces, self._seen = Braces(), 0

    def _say(self, parts: list[str | CallPart], text: str) -> None:
        text = text.lstrip(_SPACE) if self.calls else text
        if text:
            parts.append(text)

    def _head(self, parts: list[str | CallPart]) -> bool:
        """The name of a call, or all of one whose fields are in another order."""
        match = _HEAD.match(self._text)
        if match is not None and match[1] in self._tools:
            parts.append(self._begun(match[1]))
            self._text, self._read, self._braces = self._text[match.end() :], self._arguments, Braces()
            return True
        begun = self._text.lstrip(_SPACE + "[,")
        if not begun:
            return False
        end = self._braces.end(self._text, self._seen) if begun[0] == "{" else 0
        if end is None:
            self._seen = len(self._text)
            return False
        inner, self._text = self._text[:end], self._text[end:]
        self._read = self._tail if self._other(parts, inner) else self._content
        return True

    def _begun(self, name: str, arguments: str = "") -> CallPart:
        self.calls += 1
        length = self._form.identity
        identity = f"call_{secrets.token_hex(12)}" if length is None else secrets.token_hex(length)[:length]
        return CallPart(self.calls - 1, arguments, name, identity)

    def _other(self, parts: list[str | CallPart], inner: str) -> bool:
        """A complete call whose fields are in another order; else it is content. Returns whether it is a call."""
        try:
            body = json.loads(inner.lstrip(_SPACE + "[,"))
            name, arguments = body["name"], body.get("arguments", body.get("parameters"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            name = arguments = None
        if isinstance(name, str) and name in self._tools and isinstance(arguments, dict):
            parts.append(self._begun(name, json.dumps(arguments, ensure_ascii=False)))
            return True
        parts.append(self._opened + inner)
        return False

    def _arguments(self, parts: list[str | CallPart]) -> bool:
        """The arguments of a call, as the model writes them."""
        end = self._braces.end(self._text)
        read, self._text = self._text[:end], "" if end is None else self._text[end:]
        if parts and isinstance(parts[-1], CallPart):  # the beginning of the same call
            parts[-1].arguments += read
        elif read:
            parts.append(CallPart(self.calls - 1, read))
        if end is None:
            return False
        self._read, self._braces = self._tail if self._form.ends else self._around, Braces(1)
        return True

    def _around(self, parts: list[str | CallPart]) -> bool:
        """What is left of the object around the arguments."""
        end = self._braces.end(self._text)
        self._text = "" if end is None else self._text[end:]
        if end is None:
            return False
        self._read = self._tail
        return True

    def _tail(self, parts: list[str | CallPart]) -> bool:
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
