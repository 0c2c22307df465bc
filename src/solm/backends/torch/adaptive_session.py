"""A session whose steps read what their activations call for, and whose ledger books what was read."""

from dataclasses import replace
from typing import Any

import torch

from solm.backends.passes import Extended
from solm.backends.torch.adaptive import Rule, follow
from solm.backends.torch.session import Session
from solm.core.budget import Ledger
from solm.core.errors import SolmError


class AdaptiveSession(Session):
    """The rows of another session under a `Rule`. Only the torch backend has it."""

    rule: Rule

    @classmethod
    def of(cls, session: Session, rule: Rule) -> "AdaptiveSession":
        """`session` itself, which must not be used afterwards; raises `SolmError` on another backend."""
        if type(session) is not Session:
            raise SolmError("reading by mass or threshold needs --backend reference")
        made = object.__new__(cls)
        made.__dict__.update(session.__dict__)
        made.rule = rule
        return made

    def extend(self, tokens: torch.Tensor, *args: Any, **options: Any) -> Extended:
        """As in any session, but the shares returned and booked are those that the rule counted."""
        with follow(self.rule):
            found = super().extend(tokens, *args, **options)
        realised = self.rule.settle(found.realised)
        counted = found.controllable.to(torch.float64)[..., None]
        more = ((realised - found.realised) * counted).sum(1)
        self.ledger = Ledger(self.ledger.spent + more, self.ledger.steps)
        self._realised = realised[:, -1]
        return replace(found, realised=realised)
