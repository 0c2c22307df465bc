"""The forms in which models write calls of tools: a table, of which the words of a chat template choose one."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from solm.backends.chat_template import names_tools
from solm.serving.failures import ApiError

NAME = '"NAME"'
"""Stands for the quoted name of a tool in `CallForm.before`."""


@dataclass(frozen=True)
class CallForm:
    """How the replies of some models call tools.

    words, others: a template of this form has all of `words` and none of `others`. begins: the mark before a call.
    first, between, last: what stands before, between and after the calls of a reply. before, after: what stands before
    and after the arguments of one call. head: what has been read when the name (group 1) is known. follows: by mark
    after a call whether another call follows it without `begins`. bare: a reply may also begin with a call.
    arguments: JSON, or one element per parameter. several: whether the template takes several calls in one reply.
    identity: characters of a call's id, letters and digits, where the template insists on it.
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
    bare: bool = False
    arguments: Literal["json", "parameters"] = "json"
    several: bool = True
    identity: int | None = None

    @cached_property
    def heads(self) -> re.Pattern[str]:
        return re.compile(self.head)


_HEAD = r'\s*[\[,]?\s*\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
_TAGGED: dict[str, Any] = {
    "begins": "<tool_call>", "ends": "</tool_call>", "follows": (("</tool_call>", False),),
    "first": "<tool_call>\n", "between": "\n</tool_call>\n<tool_call>\n", "last": "\n</tool_call>",
}  # fmt: skip
FORMS = (
    CallForm(
        "qwen3-coder", ("<tool_call>", "<function=", "<parameter="), **_TAGGED, before=f"<function={NAME}>\n",
        after="</function>", head=r"\s*<function=([^>\n]*)>", arguments="parameters",
    ),
    CallForm(
        "hermes", ("<tool_call>",), **_TAGGED, before=f'{{"name": {NAME}, "arguments": ', after="}", head=_HEAD,
        others=("<function=", "<arg_key>"),
    ),
    CallForm(
        "mistral", ("[TOOL_CALLS]",), "[TOOL_CALLS]", "[TOOL_CALLS][", ", ", "]",
        before=f'{{"name": {NAME}, "arguments": ', after="}", head=_HEAD, follows=((",", True), ("]", False)),
        others=("[ARGS]",), identity=9,
    ),
    CallForm(
        "llama3", ("<|start_header_id|>", '"parameters"'), "<|python_tag|>", "", "; ", "",
        before=f'{{"name": {NAME}, "parameters": ', after="}", head=_HEAD, bare=True, several=False,
    ),
)  # fmt: skip
"""Qwen 2.5 and 3, Hermes; Qwen3-Coder; Mistral up to version 3 of its tokenizer; Llama 3.1 to 3.3."""


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


def hidden_mark(form: CallForm, tokenizer: Any) -> int | None:
    """The token that `form.begins` is, where text does not show it; None where it is text like any other."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    token: int | None = backend.token_to_id(form.begins)
    return token if token is not None and backend.decode([token], skip_special_tokens=True) == "" else None
