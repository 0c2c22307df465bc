"""The plan of the forward pass in progress, per thread and task; None during dense passes."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from solm.models.cache import PagedCache
from solm.ops.layout import Layout
from solm.ops.plan import Plan


@dataclass(frozen=True)
class ActivePass:
    """What the hooked modules need during one controlled forward pass."""

    plan: Plan
    layout: Layout
    cache: PagedCache


_ACTIVE: ContextVar[ActivePass | None] = ContextVar("solm_active_pass", default=None)


def active_pass() -> ActivePass | None:
    return _ACTIVE.get()


@contextmanager
def activate(current: ActivePass | None) -> Iterator[None]:
    """Make `current` the pass in progress; whatever happens inside, it does not outlive the block."""
    token = _ACTIVE.set(current)
    try:
        yield
    finally:
        _ACTIVE.reset(token)
