"""`Talk`: a conversation with a model, whose budget and policy change between replies."""

from collections.abc import Generator
from typing import Any

import numpy as np

from solm.cli.options import DECIDERS
from solm.core.budget import Terms, in_time
from solm.core.errors import SolmError
from solm.policies.artifact import TrainedPolicy
from solm.runtime.language_model import LanguageModel, Stream, check_length
from solm.runtime.prefixes import PrefixCache
from solm.runtime.prepare import noted
from solm.runtime.prompts import chat_tokens
from solm.runtime.reply import Reply, Token

_MEMORY = 512e6
"""Bytes of the conversation's keys and values that are kept."""


class Talk:
    """A conversation, and what the next reply is generated with.

    What the last prompt shares with the next one is not read again.
    """

    def __init__(self, lm: LanguageModel, policy: str | None, sampling: dict[str, Any]):
        self.lm, self.sampling = lm, sampling
        self.tokenizer: Any = lm.tokenizer
        self.policy: str | None = policy
        self.budget: str | None = None
        self._stream: Stream | None = None
        self.read = 0
        """Tokens of the last prompt, with the conversation before it."""
        self.start(None)

    @property
    def setting(self) -> str:
        """The policy and the budget of the next reply, and where step times are measured what it comes to."""
        if self.policy == "dense" or self.budget is None:
            return "dense" if self.policy == "dense" else "dense (no budget)"
        terms = self.requested()
        time = f": {in_time(terms)}" if "time" in terms else ""
        return f"policy {self.policy or ('policy' if self.lm.trained else 'static')}, budget {self.budget}{time}"

    def start(self, system: str | None) -> None:
        """Begin anew, after a system message or without one."""
        if system and not self.tokenizer.chat_template:
            raise SolmError("this model has no chat template, so a system message has no place")
        self.system = system or None
        self.messages = [{"role": "system", "content": system}] if system else []
        self._forget()

    def set_budget(self, budget: str | None) -> None:
        """Another budget; None: dense. One that is given ends the policy `dense`, which spends everything.

        Raises `BudgetError` for one that cannot be met, and keeps the old one.
        """
        policy = None if self.policy == "dense" and budget is not None else self.policy
        self._check(policy, budget)
        self.policy, self.budget = policy, budget

    def set_policy(self, name: str) -> None:
        """Another policy. Raises `SolmError` for one that is unknown or cannot meet the budget; all stays then."""
        if not name:
            raise SolmError("give what decides, such as: /policy dense")
        lm = self.lm
        if name not in (*DECIDERS, "policy"):
            lm, name = noted(lm.with_policy(TrainedPolicy.from_pretrained(name))), "policy"
        lm.policy(name)
        previous, self.lm = self.lm, lm
        try:
            self._check(name, self.budget)
        except SolmError:
            self.lm = previous
            raise
        self.policy = name
        self._forget()  # keys and values belong to the policy's sparsity

    def stream(self, said: str) -> Generator[Token]:
        """The reply to `said`, token by token; what was said of it, whole or not, becomes part of the conversation.

        Raises `ContextLengthError` where the conversation has become too long, which then stays as it was.
        """
        self.messages.append({"role": "user", "content": said})
        self._stream = None
        try:
            ids = self._encode(self.messages)
            self.read = ids.shape[1]
            check_length(self.read, self.sampling["max_new_tokens"], self.lm.context)
            budget = None if self.policy == "dense" else self.budget
            self._stream = self.lm.stream(
                ids, budget=budget, policy=self.policy, session=self._read(ids), **self.sampling
            )
            yield from self._stream
        finally:
            if self.reply is not None and self.reply.trace.ids:
                self.messages.append({"role": "assistant", "content": self.reply.text})
            else:
                self.messages.pop()

    @property
    def reply(self) -> Reply | None:
        """What has been generated of the last reply; None where it could not begin."""
        return None if self._stream is None else self._stream.reply

    def requested(self) -> Terms:
        """The budget of the last reply in all units that are measured."""
        return self._check(self.policy, self.budget)

    def _check(self, policy: str | None, budget: str | None) -> Terms:
        if policy == "dense":
            budget = None  # which spends everything
        chosen = self.lm.decider(policy, budget)
        seen = self.read + self.sampling["max_new_tokens"] // 2
        return self.lm.budgets(chosen).resolve(budget, seen).terms

    def _forget(self) -> None:
        self._prefixes = PrefixCache(_MEMORY, self.lm.sparsity.page_size)

    def _read(self, ids: np.ndarray) -> Any:
        """A session that has read ids [1, C] but for the last token, as far as possible out of the last prompt's."""
        capacity = ids.shape[1] + self.sampling["max_new_tokens"]
        session = self._prefixes.find(ids[0], capacity) or self.lm.session(capacity)
        seen = session.length(0) if session.rows else 0
        if seen < ids.shape[1] - 1:
            session.prefill(ids[:, seen:-1])
        self._prefixes.keep(ids[0, :-1], session)
        return session

    def _encode(self, messages: list[dict[str, str]]) -> np.ndarray:
        """Token ids [1, C] of a conversation."""
        if self.tokenizer.chat_template:
            ids = chat_tokens(self.tokenizer, messages)
        else:
            ids = self.tokenizer.encode("\n".join(message["content"] for message in messages) + "\n")
        return np.array([ids], dtype=np.int64)
