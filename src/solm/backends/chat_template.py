"""Chat templates: Jinja programs that come with a model, rendered in a sandbox as transformers does."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache, lru_cache, partial
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


class _Generation(Extension):
    """``{% generation %}`` marks what the assistant says, which matters in training alone."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class _SafeNamespace(Namespace):
    """A namespace without names that lead into Python's internals."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a chat template may not set {name!r} on a namespace")
        super().__setitem__(name, value)


def _refuse(message: str) -> None:
    raise TemplateError(message)


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)  # Jinja's own escapes what HTML needs
    environment.globals |= {
        "raise_exception": _refuse, "namespace": _SafeNamespace,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": lambda *given, **named: dict(*given, **named),
    }  # fmt: skip
    return environment


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    return _environment().from_string(template)


@lru_cache(maxsize=8)
def names_tools(template: str) -> bool:
    """Whether a template does anything with tools."""
    return "tools" in find_undeclared_variables(_environment().parse(template))


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    special_tokens: Mapping[str, str],
    add_generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The text of a conversation.

    messages: with texts alone as values, but for ``tool_calls``, lists. special_tokens: by transformers' names, such
    as ``bos_token``. tools: functions that the model may call, in OpenAI's form. Raises Jinja's errors where the
    template is no template or refuses the messages.
    """
    content = [dict(message) for message in messages]
    return str(
        _compiled(template).render(
            messages=content, tools=tools, documents=None, add_generation_prompt=add_generation_prompt, **special_tokens
        )
    )
