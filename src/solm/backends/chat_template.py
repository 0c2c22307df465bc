"""Chat templates: Jinja programs that come with a model, rendered in a sandbox as transformers does."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache, lru_cache, partial
from types import MappingProxyType
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_GIVEN = frozenset(("messages", "tools", "documents", "add_generation_prompt"))
"""Variables that are not a caller's to set."""


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
def names_of(template: str) -> frozenset[str]:
    """The variables that a template reads; none where it is no template."""
    try:
        names = find_undeclared_variables(_environment().parse(template))
    except TemplateError:
        return frozenset()
    return frozenset(names) - _environment().globals.keys()


def options_of(template: str) -> frozenset[str]:
    """Those of them that a caller may set, such as ``enable_thinking``."""
    return frozenset(name for name in names_of(template) - _GIVEN if not name.endswith("_token"))


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    special_tokens: Mapping[str, str],
    add_generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]] | None = None,
    told: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """The text of a conversation.

    messages: with texts alone as values, but for ``tool_calls``, lists. special_tokens: by transformers' names, such
    as ``bos_token``. tools: functions that the model may call, in OpenAI's form. told: other variables. Raises Jinja's
    errors where the template is no template or refuses the messages.
    """
    content = [dict(message) for message in messages]
    variables = {**told, **special_tokens, "messages": content, "tools": tools, "documents": None}
    return str(_compiled(template).render(variables, add_generation_prompt=add_generation_prompt))
