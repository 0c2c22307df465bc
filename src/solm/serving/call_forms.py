"""The forms in which models write calls of tools: a table, of which the words of a chat template choose one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from solm.backends.chat_template import names_tools
from solm.serving.call_arguments import Elements
from solm.serving.failures import ApiError
from solm.serving.requests import Message

NAME = "%NAME%"
"""Stands for the name of a tool in `CallForm.before`."""


@dataclass(frozen=True)
class CallForm:
    """How the replies of some models call tools.

    words, others: a template of this form has all of `words` and none of `others`. begins: the mark before a call.
    first, between, last: what stands before, between and after the calls of a reply. before, after: what stands before
    and after the arguments of one call. head: what has been read when the name (group 1) is known. follows: by mark
    after a call whether another call follows it without `begins`. opens: the mark between a name that is not in JSON
    and JSON that no mark ends. marks: what beside `begins` may be a token that text does not show. bare: a reply may
    also begin with a call. elements: how arguments are written that are no JSON. several: whether the template takes
    several calls in one reply. identity: characters of a call's id, letters and digits, where the template insists on
    it.
    """

    name: str
    words: tuple[str, ...]
    begins: str
    first: str
    between: str
    last: str
    before: str
    after: str
    head: str
    follows: tuple[tuple[str, bool], ...] = ()
    others: tuple[str, ...] = ()
    ends: str = ""
    """The mark after a call, where there is one: what lies between `begins` and it may also be no call."""
    opens: str = ""
    marks: tuple[str, ...] = ()
    bare: bool = False
    elements: Elements | None = None
    several: bool = True
    identity: int | None = None

    @cached_property
    def heads(self) -> re.Pattern[str]:
        return re.compile(self.head)

    @property
    def around(self) -> bool:
        """Whether a call ends with the JSON object around its arguments."""
        return not self.ends and not self.opens


_HEAD = r'\s*(?:[\[,]\s*)?\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
_TAGGED: dict[str, Any] = {
    "begins": "<tool_call>", "ends": "</tool_call>", "follows": (("</tool_call>", False),),
    "first": "<tool_call>\n", "between": "\n</tool_call>\n<tool_call>\n", "last": "\n</tool_call>",
}  # fmt: skip
_CODER_ELEMENTS = Elements(
    "<parameter=", ">\n", "\n</parameter>\n", re.compile(r"\s*<parameter=([^>\n]*)>\n?"),
    re.compile(r"\n?</parameter>|\n?(?=</function>\s*</tool_call>)"),
    re.compile(r"\s*</function>|[^<]*(?=</tool_call>)"),
)  # fmt: skip


def _glm(name: str, line: str, words: tuple[str, ...], others: tuple[str, ...] = ()) -> CallForm:
    """line: what separates names and values."""
    elements = Elements(
        "<arg_key>", f"</arg_key>{line}<arg_value>", f"</arg_value>{line}",
        re.compile(r"\s*<arg_key>([^<\n]*)</arg_key>\s*<arg_value>"), re.compile("</arg_value>"),
        re.compile(r"[^<]*(?=</tool_call>)"),
    )  # fmt: skip
    return CallForm(
        name, ("<tool_call>", *words), "<tool_call>", "<tool_call>", f"</tool_call>{line}<tool_call>", "</tool_call>",
        before=NAME + line, after="", head=r"\s*([\w-]+)\s*(?=<arg_key>|</tool_call>)", others=others,
        ends="</tool_call>", follows=(("</tool_call>", False),), elements=elements,
    )  # fmt: skip


_CALLS, _CALL, _SEPARATOR, _CALL_ENDS, _CALLS_END = (
    f"<\uff5ctool\u2581{words}\uff5c>"
    for words in ("calls\u2581begin", "call\u2581begin", "sep", "call\u2581end", "calls\u2581end")
)
_DEEPSEEK: dict[str, Any] = {
    "begins": _CALLS, "first": _CALLS, "last": _CALLS_END, "ends": _CALL_ENDS,
    "follows": ((_CALL, True), (_CALLS_END, False)), "marks": (_CALL, _SEPARATOR, _CALL_ENDS, _CALLS_END),
}  # fmt: skip
FORMS = (
    CallForm(
        "qwen3-coder", ("<tool_call>", "<function=", "<parameter="), **_TAGGED, before=f"<function={NAME}>\n",
        after="</function>", head=r"\s*<function=([^>\n]*)>", elements=_CODER_ELEMENTS,
    ),
    _glm("glm-4.5", "\n", ("<arg_key>",), ("</arg_key><arg_value>",)),
    _glm("glm-4.7", "", ("</arg_key><arg_value>",)),
    CallForm(
        "hermes", ("<tool_call>",), **_TAGGED, before=f'{{"name": "{NAME}", "arguments": ', after="}", head=_HEAD,
        others=("<function=", "<arg_key>"),
    ),
    CallForm(
        "mistral", ("[TOOL_CALLS]",), "[TOOL_CALLS]", "[TOOL_CALLS][", ", ", "]",
        before=f'{{"name": "{NAME}", "arguments": ', after="}", head=_HEAD, follows=((",", True), ("]", False)),
        others=("[ARGS]",), identity=9,
    ),
    CallForm(
        "mistral-13", ("[TOOL_CALLS]", "[ARGS]"), "[TOOL_CALLS]", "[TOOL_CALLS]", "[TOOL_CALLS]", "",
        before=f"{NAME}[ARGS]", after="", head=r"\s*([\w-]+)\[ARGS\]\s*(?=\{)", opens="[ARGS]", marks=("[ARGS]",),
        others=("[CALL_ID]",), identity=9,
    ),
    CallForm(
        "llama3", ("<|start_header_id|>", '"parameters"'), "<|python_tag|>", "", "; ", "",
        before=f'{{"name": "{NAME}", "parameters": ', after="}", head=_HEAD, bare=True, several=False,
    ),
    CallForm(
        "deepseek-v3", (_CALLS, "```json"), **_DEEPSEEK, between="\n",
        before=f"{_CALL}function{_SEPARATOR}{NAME}\n```json\n", after=f"\n```{_CALL_ENDS}",
        head=rf"\s*(?:{_CALL})?function{_SEPARATOR}([\w-]+)\s*```json\s*(?=\{{)",
    ),
    CallForm(
        "deepseek-v3.1", (_CALLS,), **_DEEPSEEK, between="", before=f"{_CALL}{NAME}{_SEPARATOR}", after=_CALL_ENDS,
        head=rf"\s*(?:{_CALL})?([\w-]+){_SEPARATOR}\s*(?=\{{)", others=("```json",),
    ),
)  # fmt: skip
"""Qwen3-Coder; GLM; Qwen 2.5 and 3, Hermes; Mistral up to version 3 of its tokenizer, and from version 13 on; Llama 3.1
to 3.3; DeepSeek."""


def form_of(template: object) -> CallForm | None:
    """The form that a chat template calls tools in; None: another one, or none."""
    if not isinstance(template, str):
        return None
    return next(
        (
            form
            for form in FORMS
            if all(word in template for word in form.words) and not any(word in template for word in form.others)
        ),
        None,
    )


def form_for(template: object, messages: Sequence[Message]) -> CallForm | None:
    """How a template has calls; None where it is not known. Raises `ApiError` for messages with calls that a template
    without tools would leave out."""
    if any(message.tool_calls for message in messages) and not (isinstance(template, str) and names_tools(template)):
        raise ApiError(400, "messages have tool_calls, and this model's chat template has no tools", "messages")
    return form_of(template)


def checked_form(template: object) -> CallForm:
    """The same. Raises `ApiError` for a template that has no tools, or whose replies call them in an unknown form."""
    if not isinstance(template, str) or not names_tools(template):
        raise ApiError(400, "this model's chat template has no tools", "tools", "unsupported_parameter")
    form = form_of(template)
    if form is None:
        known = ", ".join(sorted(form.name for form in FORMS))
        raise ApiError(
            400, f"this model calls tools in a form that is not known here; known are those of {known}", "tools",
            "unsupported_parameter",
        )  # fmt: skip
    return form


def hidden_marks(form: CallForm, tokenizer: Any) -> dict[str, int]:
    """Marks of a form that are tokens which text does not show, and those; others are text like any other."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {}
    tokens = {mark: backend.token_to_id(mark) for mark in (form.begins, *form.marks)}
    return {
        mark: token
        for mark, token in tokens.items()
        if token is not None and backend.decode([token], skip_special_tokens=True) == ""
    }
