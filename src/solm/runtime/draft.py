"""A draft model: a smaller one of the same vocabulary that guesses what a larger one will choose."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from solm.backends.session import Session
from solm.core.arrays import as_numpy
from solm.core.errors import SolmError
from solm.runtime.controlled import ControlledModel
from solm.runtime.guess import MOST_GUESSES, Drafted, Text
from solm.runtime.sampling import Sampler

_AT_ONCE = MOST_GUESSES + 1
"""Tokens of a row that one pass reads."""
_CHUNK = 512
"""Tokens of a long text that are read between two passes of the batch, whose rows all wait for them."""
_COMMON = 1 << 16
"""Only the first tokens of the vocabulary are guessed. Tokenizers number frequent tokens first, and reading the rest of
the head takes longer than the few guesses that it adds save."""
_RECENT, _RARE = 64, 0.1
"""All tokens are guessed where more than this share of a text's last ones have larger ids, as in some languages."""


class Drafter:
    """A draft model's session beside that of a batch.

    Its rows are those that it was asked to guess for, and leave with the batch's. What they hold is brought up to date
    when they are asked for: a draft that does not pay reads nothing. A prompt reuses the pages of an earlier one that
    begins alike.
    """

    def __init__(self, lm: ControlledModel, target: ControlledModel):
        self._lm, self._most = lm, target.shapes.vocabulary
        self.weight = lm.shapes.step_bits / target.shapes.step_bits
        """See `Drafting`."""
        self._rows: list[Text] = []
        self._known: list[list[int]] = []
        """Of every row what was drafted last, and the session may have read."""
        self._ends = np.zeros(0, np.int64)
        """Tokens that the rows' texts had then."""
        self._session: Session | None = None
        self._reading: dict[Text, Session] = {}
        """Rows whose texts are not read yet, each with a session of its own."""

    def behind(self, row: Text) -> int | None:
        """Tokens of a row's text that the draft model has not read; None where it has no room for it."""
        length = len(row.prompt) + len(row.ids)
        if self._lm.context is not None and length + MOST_GUESSES > self._lm.context:
            return None
        if row in self._rows:
            return length - self._valid(self._rows.index(row))
        session = self._reading.get(row)
        return length - (session.length(0) if session is not None and session.rows else 0)

    def draft(self, rows: Sequence[Text]) -> Iterator[Drafted]:
        """The next tokens of rows, a step at a time, as long as they are asked for. Other rows that were drafted for
        before go along. A row whose text is long is read first, part by part, and has no tokens until that is done."""
        for row in [each for each in self._rows if self.behind(each) is None]:
            self.leave(row)
        for row in rows:
            if row not in self._rows:
                self._read(row)
        session, texts = self._session, self._rows
        if session is None:
            return
        valid = np.array([self._valid(place) for place in range(len(texts))])
        self._ends = ends = np.array([len(row.prompt) + len(row.ids) for row in texts])
        self._known = [[] for _ in texts]
        recent = [self._tail(row, max(0, end - _RECENT)) for row, end in zip(texts, ends.tolist(), strict=True)]
        rare = any((tokens >= _COMMON).mean() > _RARE for tokens in recent)
        session.outputs = None if rare else min(_COMMON, self._lm.shapes.vocabulary)
        while True:
            begun = time.perf_counter()
            valid = np.minimum(valid, ends - 1)  # who has read all reads the last token again beside the others
            session.truncate(valid)
            counts = np.minimum(ends - valid, _AT_ONCE)
            tokens = np.zeros((len(texts), counts.max()), np.int64)
            for place, row in enumerate(texts):
                tokens[place, : counts[place]] = self._tail(row, valid[place])[: counts[place]]
            found = session.extend(tokens, None, (counts - 1)[:, None], counts=counts, exact_largest=1)
            valid = valid + counts
            if (valid == ends).all():
                break
        size = int(counts.sum())
        while True:
            chosen = [
                _guessed(logits[0, : self._most], row.sampler, len(known))
                for logits, row, known in zip(as_numpy(found.logits), texts, self._known, strict=True)
            ]
            for known, (token, _) in zip(self._known, chosen, strict=True):
                known.append(token)
            yield Drafted(dict(zip(texts, chosen, strict=True)), size, time.perf_counter() - begun)
            begun, size = time.perf_counter(), len(texts)
            found = session.step(np.array([token for token, _ in chosen]), exact_largest=1)

    def leave(self, row: Any) -> None:
        """Forget a row that left the batch, if it was drafted for."""
        self._reading.pop(row, None)
        if row not in self._rows:
            return
        place = self._rows.index(row)
        assert self._session is not None
        self._rows[place], self._known[place], self._ends[place] = self._rows[-1], self._known[-1], self._ends[-1]
        self._rows.pop()  # as in the session
        self._known.pop()
        self._ends = self._ends[:-1]
        if self._rows:
            self._session.leave(place)
        else:
            self._session = None

    def clear(self) -> None:
        """Forget all rows."""
        self._rows, self._known, self._ends, self._session = [], [], np.zeros(0, np.int64), None
        self._reading = {}

    def _read(self, row: Text) -> None:
        """Read more of a row's text; where only its last token is left, it joins the others."""
        kept, text = self._lm.prefixes, self._tail(row, 0)[:-1]
        capacity = len(row.prompt) + row.longest + MOST_GUESSES
        if row not in self._reading:
            with kept.lock:
                found = kept.find(text, capacity)
            self._reading[row] = self._lm.session(capacity) if found is None else found
        session = self._reading[row]
        read = session.length(0) if session.rows else 0
        session.prefill(text[None, read : read + _CHUNK])
        if read + _CHUNK < len(text):
            return
        del self._reading[row]
        with kept.lock:
            kept.keep(text, session)
        if self._session is None:
            self._session = session
        else:
            self._session.join(session)
        self._rows.append(row)
        self._known.append([])
        self._ends = np.append(self._ends, len(text))

    def _valid(self, place: int) -> int:
        """How many of the tokens that a row holds are its text."""
        assert self._session is not None
        end = int(self._ends[place])
        most = self._session.length(place) - end
        alike = 0
        for drafted, token in zip(self._known[place][:most], self._tail(self._rows[place], end), strict=False):
            if drafted != token:
                break
            alike += 1
        return end + min(alike, most)

    def _tail(self, row: Text, first: int) -> np.ndarray:
        """The tokens of a row's text from place `first` on, those that the draft model lacks as its last one."""
        read = len(row.prompt)
        tail = np.array(row.ids[first - read :]) if first >= read else np.concatenate([row.prompt[first:], row.ids])
        return np.minimum(tail, self._lm.shapes.vocabulary - 1)


def _guessed(logits: np.ndarray, sampler: Sampler, ahead: int) -> tuple[int, float]:
    """What a sampler may choose after `ahead` more tokens, by a draft model's logits [V], and the probability of their
    likeliest token."""
    weights = logits - logits.max()
    np.exp(weights, out=weights)
    return sampler.foresee(logits, ahead), 1 / float(weights.sum())


def check_vocabulary(draft: Any, tokenizer: Any, name: str) -> None:
    """Raises `SolmError` where the tokenizer of a draft model called `name` means other tokens by the ids that both
    tokenizers have. Ids beyond those are padding, which differs by the size of a model."""
    try:
        theirs, ours = (each.backend_tokenizer.get_vocab(with_added_tokens=True) for each in (draft, tokenizer))
    except AttributeError:
        raise SolmError("a draft model needs tokenizers of the tokenizers package, which can be compared") from None
    common = min(len(theirs), len(ours))
    other = sum(number < common and theirs.get(token) != number for token, number in ours.items())
    if other or abs(len(theirs) - len(ours)) > common // 50:
        raise SolmError(
            f"{name} has another vocabulary than the model ({len(theirs):,} and {len(ours):,} tokens, {other:,} of the "
            "first ones differ); a draft model needs the same"
        )
