"""Calls of tools: the forms in which models write them, and the reader of such replies."""

import json
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass

from solm.runtime.reply import overlap

_SPACE = " \n\r\t"
_STRUCTURE = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|["{}]', re.DOTALL)
"""A brace, a string, or the beginning of one."""


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


class ObjectEnd:
    """Looks for the end of a JSON object in a text that grows and has the object's first brace at `start` or later."""

    def __init__(self, start: int = 0):
        self._place, self._depth = start, 0
        self._end: int | None = None

    def find(self, text: str) -> int | None:
        """The place after the last brace; None: not yet."""
        while self._end is None and (match := _STRUCTURE.search(text, self._place)) is not None:
            if match[0] == '"':  # of a string that has not ended
                return None
            self._place = match.end()
            self._depth += {"{": 1, "}": -1}.get(match[0], 0)
            if match[0] == "}" and self._depth <= 0:
                self._end = self._place
        return self._end


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
        self._form, self._tools = form, tools
        self._bare = form.bare
        """Whether a call may begin here without its mark."""
        self._text, self._opened, self._sent = "", "", 0
        self._read = self._content
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
        if self._read == self._call and not self._sent:
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
        """A call may begin with `rest`; if not, `opened` is content. `_text` keeps the call until its end; `_sent` of
        it was read, 0: its name is not known yet."""
        self._opened, self._text, self._read = opened, rest, self._call
        self._whole, self._sent = ObjectEnd(), 0

    def _say(self, parts: list[str | CallPart], text: str) -> None:
        text = text.lstrip(_SPACE) if self.calls else text
        if text:
            parts.append(text)

    def _call(self, parts: list[str | CallPart]) -> bool:
        """A call: where its name comes first, its arguments as they come; else all of it at its end."""
        head = _HEAD.match(self._text)
        if head is not None and head[1] in self._tools:
            return self._arguments(parts, head[1], head.end())
        begun = self._text.lstrip(_SPACE + "[,")
        if not begun:
            return False
        end = self._whole.find(self._text) if begun[0] == "{" else 0
        if end is None:
            return False
        inner, self._text = self._text[:end], self._text[end:]
        self._read = self._tail if self._other(parts, inner) else self._content
        return True

    def _arguments(self, parts: list[str | CallPart], name: str, start: int) -> bool:
        """The arguments of a call, which begin at `start`, as the model writes them."""
        if not self._sent:
            parts.append(self._begun(name))
            self._sent, self._inner = start, ObjectEnd(start)
        stop = self._inner.find(self._text)
        more = self._text[self._sent : stop]
        self._sent += len(more)
        if parts and isinstance(parts[-1], CallPart):  # the beginning of the same call
            parts[-1].arguments += more
        elif more:
            parts.append(CallPart(self.calls - 1, more))
        end = stop if stop is None or self._form.ends else self._whole.find(self._text)
        if end is None:
            return False
        self._text, self._read = self._text[end:], self._tail
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
