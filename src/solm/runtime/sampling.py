"""Choosing the next token of one row: greedy and plain sampling in NumPy, rarer options through transformers."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from solm.backends.machine import one_torch_thread
from solm.backends.session import MOST_EXACT
from solm.core.arrays import Array, as_numpy, as_tensor
from solm.core.errors import SolmError
from solm.runtime.controlled import ControlledModel
from solm.runtime.grammars import Constraint
from solm.runtime.guess import Allowance

REPLY_PENALTIES = ("presence_penalty", "frequency_penalty")
"""Options that transformers lacks: subtracted from the logits of tokens that the reply has, once or per occurrence."""
SUPPORTED = (
    "do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "sequence_bias", "suppress_tokens",
    "begin_suppress_tokens", "min_length", "min_new_tokens", "exponential_decay_length_penalty",
    "remove_invalid_values", "renormalize_logits", "eos_token_id", "pad_token_id", *REPLY_PENALTIES,
)  # fmt: skip
"""Generation options that are carried out. A reply is one row, which needs no padding, whatever the token."""
_TOP_K = 50
"""What transformers takes where tokens are drawn and nothing else is said."""
_BLOCK = 512
"""Weights that are summed together."""
_DRAWN = ("temperature", "top_k", "top_p", "min_p")
"""Options that matter where tokens are drawn."""
_NO_MATTER = ("do_sample", "eos_token_id", "pad_token_id")
"""Options that change no score."""
_NEUTRAL: dict[str, Any] = {
    "repetition_penalty": 1.0, "typical_p": 1.0, "no_repeat_ngram_size": 0, "min_length": 0, "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0, "remove_invalid_values": False, "renormalize_logits": False,
}  # fmt: skip
"""Values with which options change no score."""


class Change(Protocol):
    """What changes the scores of tokens by those that came before."""

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """[V] float32 from logits [V], which stay as they are; minus infinity for a token that cannot be chosen."""

    def add(self, token: int) -> None:
        """`token` was chosen."""


class Penalised:
    """Changes logits in this order:

    biases: added to the logits of their tokens. repetition: logits of tokens of ids [1, C] and of those chosen since
    are divided by it above 0, multiplied by it below. presence, frequency: subtracted from the logits of tokens chosen
    since, once, and once per occurrence. The first two as transformers' processors for sequence_bias and
    repetition_penalty do them, the others as OpenAI's API defines them.
    """

    def __init__(
        self,
        ids: Array,
        repetition: float = 1.0,
        presence: float = 0.0,
        frequency: float = 0.0,
        biases: Mapping[int, float] | None = None,
    ):
        self._repetition = np.float32(repetition)
        self._presence, self._frequency = np.float32(presence), np.float32(frequency)
        self._biased = np.array(list(biases or {}), np.int64)
        self._biases = np.array(list((biases or {}).values()), np.float32)
        self._seen = np.unique(as_numpy(ids)) if repetition != 1 else np.zeros(0, np.int64)
        self._chosen, self._counts = np.zeros(0, np.int64), np.zeros(0, np.float32)
        self._places: dict[int, int] = {}
        """Of the tokens in `_chosen`."""

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """As `Change.scores`."""
        scores = logits.astype(np.float32)
        scores[self._biased] += self._biases
        seen = scores[self._seen]
        scores[self._seen] = np.where(seen < 0, seen * self._repetition, seen / self._repetition)
        scores[self._chosen] -= self._frequency * self._counts + self._presence
        return scores

    def add(self, token: int) -> None:
        """`token` was chosen."""
        if self._repetition != 1:
            self._seen = np.union1d(self._seen, token)
        if token not in self._places:
            self._places[token] = len(self._chosen)
            self._chosen, self._counts = np.append(self._chosen, token), np.append(self._counts, np.float32(0))
        self._counts[self._places[token]] += 1


class Processed:
    """Changes scores by transformers' logits processors, in their order, after ids [1, C].

    alone: whether torch must keep to one thread, see `one_torch_thread`.
    """

    def __init__(self, ids: Array, processors: Any, alone: bool = False):
        self._sequence, self._processors, self._alone = as_tensor(ids), processors, alone

    def scores(self, logits: Array) -> np.ndarray:
        """As `Change.scores`."""
        with one_torch_thread(self._alone):
            given = as_tensor(logits)
            found = self._processors(self._sequence.to(given.device), given[None].float())
            return as_numpy(found[0])

    def add(self, token: int) -> None:
        """`token` was chosen."""
        import torch

        self._sequence = torch.cat([self._sequence, self._sequence.new_tensor([[token]])], 1)


@dataclass(frozen=True)
class Plain:
    """Logits over the temperature; of those the `top_k` largest (0: all), of those the likeliest that together have a
    probability of at least `top_p`, and of those the ones that are at least `min_p` times as likely as the likeliest.
    What transformers' own processors make of the same options."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def draw(self, logits: np.ndarray, place: float) -> int:
        """The token at `place` in [0, 1) of the distribution that logits [V] give."""
        ids, weights = self.possible(logits)
        found = _drawn(weights, place)
        return found if ids is None else int(ids[found])

    def possible(self, logits: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """Tokens that can be chosen by logits [V], in rising order, None for all; and their weights, 1 for the
        likeliest."""
        scores, ids = logits.astype(np.float32, copy=False), None
        if self.temperature != 1:
            scores = scores / np.float32(self.temperature)
        if 0 < self.top_k < len(scores):
            ids = np.flatnonzero(scores >= np.partition(scores, -self.top_k)[-self.top_k])
            scores = scores[ids]
        weights = scores - scores.max()
        np.exp(weights, out=weights)
        kept = None if self.top_p == 1 else _likeliest(weights, self.top_p)
        if self.min_p:
            likely = weights >= np.float32(self.min_p)
            kept = np.flatnonzero(likely) if kept is None else kept[likely[kept]]
        if kept is None:
            return ids, weights
        return kept if ids is None else ids[kept], weights[kept]


def _drawn(weights: np.ndarray, place: float) -> int:
    """The first of weights [n] that, with all before it, makes more than a share `place` in [0, 1) of their sum.

    Summed by blocks: a running sum of all of them would take most of the time that a draw takes.
    """
    ends = np.arange(0, len(weights), _BLOCK)
    sums = np.cumsum(np.add.reduceat(weights, ends, dtype=np.float64))
    aim = place * sums[-1]
    block = _reaches(sums, aim)
    first = block * _BLOCK
    before = sums[block - 1] if block else 0.0
    return first + _reaches(before + np.cumsum(weights[first : first + _BLOCK], dtype=np.float64), aim)


def _reaches(sums: np.ndarray, aim: float) -> int:
    """The first place of rising `sums` above `aim`; by rounding there may be none: the last that has a weight."""
    found = int(np.searchsorted(sums, aim, side="right"))
    return found if found < len(sums) else int(np.searchsorted(sums, sums[-1]))


def _likeliest(weights: np.ndarray, top_p: float) -> np.ndarray:
    """The likeliest tokens that together have at least `top_p` of weights [V], in rising order; of those of equal
    weight the first."""
    total = float(weights.sum(dtype=np.float64))
    # What is below an even part of the rest lies within the rest: only the others have to be sorted.
    ids = np.flatnonzero(weights >= (1 - top_p) / len(weights) * total)
    known = weights[ids]
    falling = np.sort(known)[::-1]
    count = int(np.searchsorted(np.cumsum(falling, dtype=np.float64), top_p * total)) + 1
    bound = falling[min(count, len(ids)) - 1]
    kept = known > bound
    kept[np.flatnonzero(known == bound)[: count - int(kept.sum())]] = True
    return ids[kept]


def noise(seed: int, position: int, ids: np.ndarray) -> np.ndarray:
    """Gumbel noise [n] float64 of tokens ids [n] at a position of a reply, at most `MOST_NOISE`: whichever tokens it is
    asked for, that of a token is the same.

    The token of the largest log-weight plus noise is one of the distribution that the weights give (Gumbel-max).
    """
    # SplitMix64 twice, over the seed and position and over the token; of the result the first 24 bits.
    place = np.uint64((seed ^ (position * 0xD1342543DE82EF95)) % (1 << 64))
    mixed = _mixed(place ^ _mixed(ids.astype(np.uint64)))
    return -np.log(-np.log(((mixed >> np.uint64(40)).astype(np.float64) + 0.5) / (1 << 24)))


MOST_NOISE = -math.log(-math.log(1 - 2.0**-25))


def _mixed(values: np.ndarray) -> np.ndarray:
    values = values + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))


class Sampler:
    """Chooses the tokens of one row, with random numbers of its own.

    changes: of the logits, in their order. plain: how tokens are drawn; None: the largest score is chosen. stops:
    tokens after which a reply ends. constraint: a grammar, by which logits are masked before anything else.
    allowance: what the reply may lose by tokens that are kept though others are chosen; None: nothing, and tokens are
    drawn in another way. free: whether the grammar waits, because it holds for what comes later. opening: a token that
    may come first, whatever the grammar says, which then waits.
    """

    def __init__(
        self,
        seed: int,
        changes: Sequence[Change] = (),
        plain: Plain | None = None,
        stops: frozenset[int] = frozenset(),
        constraint: Constraint | None = None,
    ):
        self.seed, self._changes, self.plain, self.stops, self.constraint = seed, changes, plain, stops, constraint
        self.free = False
        self.opening: int | None = None
        self.allowance: Allowance | None = None
        self._chosen = 0
        self._places: deque[float] = deque()
        """Random numbers of the next tokens."""

    @property
    def largest(self) -> int:
        """How many of the largest logits are all that counts; 0: all of them may."""
        exact = self.plain.top_k if self.plain is not None else 1 if self.allowance is None else MOST_EXACT
        return 0 if self._changes or self.constraint is not None or exact > MOST_EXACT else exact

    @cached_property
    def _random(self) -> np.random.Generator:
        return np.random.default_rng(self.seed % (1 << 64))

    def _place(self, ahead: int) -> float:
        """The random number of the token after `ahead` more."""
        while len(self._places) <= ahead:
            self._places.append(self._random.random())
        return self._places[ahead]

    @classmethod
    def of(
        cls,
        lm: ControlledModel,
        ids: Array,
        seed: int,
        options: Mapping[str, Any],
        constraint: Constraint | None = None,
    ) -> "Sampler":
        """The sampler after ids [1, C] that transformers' generation options make.

        options: those in `SUPPORTED`; greedy unless one of temperature, top_p, top_k and min_p, or do_sample, is given.
        Temperature 0 is greedy. Of the model's own options others than these are ignored. Raises `SolmError` for any
        other option, and for a value that transformers refuses.
        """
        for name in options:
            if name not in SUPPORTED:
                raise SolmError(f"generation option {name!r} is not supported; supported are {', '.join(SUPPORTED)}")
        chosen = {name: value for name, value in lm.generation_options.items() if name in SUPPORTED} | dict(options)
        if "do_sample" not in options:
            chosen["do_sample"] = any(options.get(name) is not None for name in _DRAWN)
        if options.get("temperature") == 0:
            chosen["do_sample"] = False
        if not chosen["do_sample"]:
            chosen |= dict.fromkeys(_DRAWN)
        rest, penalties = _penalties(chosen)
        if (over := max(penalties.get("biases", {}), default=0)) >= lm.shapes.vocabulary:
            raise SolmError(f"sequence_bias: there is no token {over}; the model has {lm.shapes.vocabulary}")
        changes: list[Change] = [Penalised(ids, **penalties)] if penalties else []
        plain, ends, draws = _plain(rest), chosen.get("eos_token_id"), bool(chosen["do_sample"])
        if plain is None:
            processors, draws, ends = _processors(rest, ids)
            plain = Plain()
            changes += [Processed(ids, processors, lm.beside_engine)] if processors else []
        stops = frozenset(ends if isinstance(ends, list | tuple) else [] if ends is None else [ends])
        return cls(seed, changes, plain if draws else None, stops, constraint)

    def ended(self, token: int) -> bool:
        """Whether a reply ends with `token`, which was chosen last: by itself, or because the grammar is complete."""
        return token in self.stops or (self.constraint is not None and self.constraint.complete)

    def possible(self, logits: np.ndarray) -> np.ndarray:
        """Logits [V], in which tokens that the grammar forbids have minus infinity."""
        if self.constraint is None or self.free:
            return logits
        possible = self.constraint.masked(logits)
        if self.opening is not None:
            possible[self.opening] = logits[self.opening]
        return possible

    def choose(self, logits: np.ndarray, guess: int | None = None) -> int:
        """The next token, from logits [V] of `possible`; it counts as part of the reply from here on. guess: it is kept
        where the allowance permits that."""
        for change in self._changes:
            logits = change.scores(logits)
        if self.allowance is None:
            chosen = self.foresee(logits, 0)
        else:
            chosen = self._near(logits, guess, self.allowance)
        self._chosen += 1
        if self._places:
            self._places.popleft()
        for change in self._changes:
            change.add(chosen)
        if self.constraint is not None and not self.free and chosen not in self.stops and chosen != self.opening:
            self.constraint.add(chosen)
        self.opening = None
        return chosen

    def foresee(self, logits: np.ndarray, ahead: int) -> int:
        """What logits [V] choose after `ahead` more tokens, as far as penalties and grammars do not matter."""
        if self.plain is None:
            return int(logits.argmax())
        if self.allowance is None:
            return self.plain.draw(logits, self._place(ahead))
        return self._noisy(self.plain, logits, ahead)[0]

    def _near(self, logits: np.ndarray, guess: int | None, allowance: Allowance) -> int:
        """The token that logits [V] choose, or a guess that gives up no more than is allowed. Neither an end is given
        up nor one taken, which would change more than a token."""
        chosen, best, score = self.foresee(logits, 0), 0.0, -math.inf
        regret = 0.0
        if guess is not None and guess != chosen and self.stops.isdisjoint((guess, chosen)):
            if self.plain is None:
                best, score = float(logits[chosen]), float(logits[guess])
                # Beyond these logits may be approximate.
                if np.count_nonzero(logits > logits[guess]) >= MOST_EXACT:
                    score = -math.inf
            else:
                _, best, score = self._noisy(self.plain, logits, 0, guess)
            if best - score <= allowance.next:
                chosen, regret = guess, best - score
        allowance.take(regret)
        return chosen

    def _noisy(
        self, plain: Plain, logits: np.ndarray, ahead: int, guess: int | None = None
    ) -> tuple[int, float, float]:
        """The token that logits [V] and noise choose after `ahead` more, its log-weight with noise, and that of
        `guess`."""
        ids, weights = plain.possible(logits)
        position = self._chosen + ahead
        with np.errstate(divide="ignore"):
            logs = np.log(weights)
        best, chosen, near = -math.inf, 0, np.flatnonzero(logs >= -1)
        for _ in range(2):  # then those that the noise can carry beyond the best of the first ones
            tokens = near if ids is None else ids[near]
            noisy = logs[near] + noise(self.seed, position, tokens)
            place = int(noisy.argmax())
            best, chosen = float(noisy[place]), int(tokens[place])
            near = np.flatnonzero(logs >= best - MOST_NOISE)
        score = -math.inf
        if guess is not None:
            place = guess if ids is None else int(np.searchsorted(ids, guess))
            if ids is None or (place < len(ids) and ids[place] == guess):
                score = float(logs[place] + noise(self.seed, position, np.array([guess]))[0])
        return chosen, best, score


def _penalties(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options without those that `Penalised` carries out, and what it is given for them; values that only transformers
    can refuse, and biases of several tokens, stay. Raises `SolmError` for a penalty that is no finite number."""
    rest, change = dict(options), dict[str, Any]()
    penalty: Any = rest.get("repetition_penalty")
    biases: Any = rest.get("sequence_bias")
    for name in REPLY_PENALTIES:
        value = rest.pop(name, None)
        if value is None or value == 0:
            continue
        if type(value) not in (int, float) or not math.isfinite(value):
            raise SolmError(f"generation option {name!r} must be a finite number, got {value!r}")
        change[name.removesuffix("_penalty")] = value
    if biases is not None:
        if not isinstance(biases, dict) or not all(
            type(key) is tuple and len(key) == 1 and type(key[0]) is int and key[0] >= 0 and type(value) is float
            for key, value in biases.items()
        ):
            return rest, change  # transformers adds them before it penalises repetitions
        change["biases"] = {key[0]: value for key, value in rest.pop("sequence_bias").items()}
    if type(penalty) in (int, float) and penalty > 0 and penalty != 1:
        change["repetition"] = rest.pop("repetition_penalty")
    return rest, change


def _plain(options: Mapping[str, Any]) -> Plain | None:
    """The rule that options amount to; None where they ask for more, or for what only transformers can refuse."""
    for name, value in options.items():
        if name not in _NO_MATTER and name not in _DRAWN and value is not None and value != _NEUTRAL.get(name):
            return None
    temperature, top_k, top_p, min_p = (
        default if options.get(name) is None else options[name]
        for name, default in (("temperature", 1.0), ("top_k", _TOP_K), ("top_p", 1.0), ("min_p", 0.0))
    )
    numbers = all(type(value) in (int, float) for value in (temperature, top_p, min_p)) and type(top_k) is int
    if not numbers or not temperature > 0 or top_k < 0 or not 0 < top_p <= 1 or not 0 <= min_p <= 1:
        return None
    return Plain(float(temperature), int(top_k), float(top_p), float(min_p))


def _processors(options: Mapping[str, Any], ids: Array) -> tuple[Any, Any, Any]:
    """transformers' logits processors for generation options and prompts of the length of ids [1, C], whether tokens
    are drawn, and the tokens that end a reply (one, several or None).

    Without the model, which would add its own options to those that are left out. Raises `SolmError` for a value that
    transformers refuses.
    """
    import torch
    from transformers import GenerationConfig, GenerationMixin, PretrainedConfig

    config = GenerationConfig()
    config.update(**options)
    generator: Any = GenerationMixin()
    generator.generation_config, generator.config, generator.main_input_name = config, PretrainedConfig(), "input_ids"
    generator.device, generator.dtype = torch.device("cpu"), torch.float32
    found, _ = generator._prepare_generation_config(config)
    device = as_tensor(ids).device
    generator._prepare_special_tokens(found, kwargs_has_attention_mask=True, device=device)
    try:
        processors = generator._get_logits_processor(found, input_ids_seq_length=ids.shape[1], device=device.type)
    except ValueError as error:
        raise SolmError(f"generation options: {' '.join(str(error).split())}") from error
    return processors, bool(found.do_sample), found.eos_token_id
