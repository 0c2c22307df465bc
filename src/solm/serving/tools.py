"""Calls of tools: the forms in which models write them, and the reader of such replies."""

import json
import re
import secrets
from collections.abc import Collection, Generator, Iterator
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
        self._form, self._tools, self.calls = form, tools, 0
        self._text, self._opened, self._ended = "", "", False
        """What is not read yet; what stands before a call; whether no more text comes."""
        self._parts = list[str | CallPart]()
        self._reading = self._read()

    def push(self, text: str, last: bool = False) -> list[str | CallPart]:
        """What more text of the reply adds: pieces of content, and of calls. last: the reply ends with it."""
        self._text, self._ended = self._text + text, last
        next(self._reading, None)
        parts, self._parts = self._parts, []
        return parts

    # One reader: it takes away from `_text`, adds to `_parts`, and yields where it needs more text.

    def _read(self) -> Iterator[None]:
        bare = self._form.bare
        while (yield from self._content(bare)):
            follows = True
            while follows:
                bare = is_call = yield from self._call()
                follows = is_call and (yield from self._tail())
            bare = bare and self._form.bare

    def _content(self, bare: bool) -> Generator[None, None, bool]:
        """Text up to a call, or else to the end; whether a call may begin. bare: also at once, without its mark."""
        space = _SPACE + ";" if self.calls else _SPACE
        while bare:
            rest = self._text.lstrip(space)
            if rest.startswith("{"):
                self._opened, self._text = self._text[: len(self._text) - len(rest)], rest
                return True
            if rest or self._ended:
                break
            yield
        while True:
            before, begins, after = self._text.partition(self._form.begins)
            if begins:
                self._say(before.rstrip(_SPACE))
                self._opened, self._text = begins, after
                return True
            sure = before[: len(before) - overlap(before, self._form.begins)].rstrip(_SPACE)
            sure = before if self._ended else sure
            self._say(sure)
            self._text = before[len(sure) :]
            if self._ended:
                return False
            yield

    def _say(self, text: str) -> None:
        text = text.lstrip(_SPACE) if self.calls else text
        if text:
            self._parts.append(text)

    def _call(self) -> Generator[None, None, bool]:
        """A call: where its name comes first, its arguments as they come; else all of it at its end. Returns whether it
        is one. If not it is content, as one that did not begin properly before the reply ended."""
        whole, end = ObjectEnd(), None
        while end is None:
            head, begun = _HEAD.match(self._text), self._text.lstrip(_SPACE + "[,")
            if head is not None and head[1] in self._tools:
                yield from self._arguments(head[1], head.end(), whole)
                return True
            end = whole.find(self._text) if begun.startswith("{") else 0 if begun else None
            if end is None and self._ended:
                end = len(self._text)
            elif end is None:
                yield
        inner, self._text = self._text[:end], self._text[end:]
        try:  # its fields may be in another order
            body = json.loads(inner.lstrip(_SPACE + "[,"))
            name, arguments = body["name"], body.get("arguments", body.get("parameters"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            name = arguments = None
        is_call = isinstance(name, str) and name in self._tools and isinstance(arguments, dict)
        if is_call:
            self._begin(name, json.dumps(arguments, ensure_ascii=False))
        else:
            self._parts.append(self._opened + inner)
        return is_call

    def _arguments(self, name: str, sent: int, whole: ObjectEnd) -> Iterator[None]:
        """The arguments of a call, which begin at `sent`, as the model writes them, and what is left of its object."""
        inner, end = ObjectEnd(sent), None
        self._begin(name)
        while end is None:
            stop = inner.find(self._text)
            more = self._text[sent:stop]
            sent += len(more)
            if self._parts and isinstance(self._parts[-1], CallPart):  # the beginning of the same call
                self._parts[-1].arguments += more
            elif more:
                self._parts.append(CallPart(self.calls - 1, more))
            end = stop if stop is None or self._form.ends else whole.find(self._text)
            if end is None and self._ended:
                end = len(self._text)
            elif end is None:
                yield
        self._text = self._text[end:]

    def _begin(self, name: str, arguments: str = "") -> None:
        length = self._form.identity
        identity = f"call_{secrets.token_hex(12)}" if length is None else secrets.token_hex(length)[:length]
        self._parts.append(CallPart(self.calls, arguments, name, identity))
        self.calls += 1

    def _tail(self) -> Generator[None, None, bool]:
        """What is left of a call, up to its end or the next one; whether that begins without its mark."""
        follows = dict(self._form.follows)
        while follows:
            ends = [(self._text.find(sign), sign) for sign in (*follows, self._form.begins) if sign in self._text]
            if ends or self._ended:
                place, self._opened = min(ends, default=(len(self._text), ""))
                self._text = self._text[place + (len(self._opened) if self._opened in follows else 0) :]
                return bool(follows.get(self._opened))
            yield
        return False
