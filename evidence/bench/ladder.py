"""Turning the dial, or a smaller or a more quantised model: milliseconds per token against bits per byte of text.

    python evidence/bench/ladder.py --model builtin:smollm2-135m --model 0.5B.gguf --model 1.5B.gguf --types Q8_0,Q4_0 \
        --data WIKI.txt --data BOOKS.jsonl --out ladder.json

Every model is run in its file's own type and in the other types, into which llama.cpp converts that file: they are
rounded twice, and Q8_0 holds no more than the file did. On the file's own type the dial is turned: to budgets of the
policy that ships for the model, evenly spaced between its floor and dense, or where none ships to the MLP shares of
--mlp, every layer alike.

All score the same bytes: passages are cut by characters, at spaces. The characters before a passage are read densely.
Bits per byte are what a passage's tokens cost under the setting, over its bytes in UTF-8, and the mean of passages;
differences are paired over them, with 95 % intervals. Milliseconds: all models are loaded in one process, read one
passage's beginning and decode what follows it, all settings of all models in turn. A figure is the median over rounds
of a round's mean step, as greedy generation runs it.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch

import peers
import solm
from common import STEPS, constant_step, finish, in_turns, numbers, parser, policy_step, scored_under, spread
from passages import Passage, passages
from solm.backends.names import gguf_of
from solm.backends.session import Session
from solm.cli import checks
from solm.cli.output import Progress, progress_bar
from solm.core.actions import FULL_BITS
from solm.core.budget import Budget
from solm.core.curve import spaced_budgets
from solm.core.errors import SolmError
from solm.core.files import resumable
from solm.core.parts import Parts
from solm.evaluation.statistics import paired_difference
from solm.policies.artifact import TrainedPolicy
from solm.runtime.facts import AUTO
from solm.runtime.load import default_kv_cache
from timed_engines import shown, steps

DENSE = (1.0, 1.0, float(FULL_BITS))
Setting = tuple[float, float, float] | Budget
"""An action of every step, or what a policy has to keep to."""


@dataclass(frozen=True)
class File:
    """A model's file of one of llama.cpp's types; own: as it was given, not converted."""

    model: str
    path: str
    type: str
    own: bool
    policy: TrainedPolicy | None


class Rung:
    """A file that is loaded, and the settings that it is run at."""

    def __init__(self, file: File, kv_cache: str, budgets: int, mlp: list[float], context: int):
        """context: characters before a passage, of which about a quarter as many are tokens."""
        self.file = file
        self.lm = solm.load(file.path, file.policy, backend="cpu", kv_cache_dtype=kv_cache)
        self.settings: dict[str, Setting] = {"dense": DENSE}
        if file.policy is not None:
            offer, seen = self.lm.budgets(), context // 4
            floor = offer.time_floor(seen) if offer.measured else offer.bytes(offer.lowest(seen), seen)
            for share in reversed(spaced_budgets(floor, budgets)):
                self.settings[f"budget {share:g}"] = self.lm.budget(share, seen)
        elif file.own:
            self.settings |= {f"MLP {share:g}": (1.0, share, float(FULL_BITS)) for share in mlp}

    @property
    def name(self) -> str:
        return f"{self.lm.name}, {self.file.type}" if self.file.own else Path(self.file.path).name

    def tokens(self, passage: Passage) -> tuple[torch.Tensor, torch.Tensor]:
        """What is read [1, C] and scored [1, T + 1]: the last token read and those of the text. Both are encoded by
        themselves, so that what is scored is the passage's text for every tokenizer."""
        assert self.lm.tokenizer is not None
        before, text = (
            torch.tensor([self.lm.tokenizer(part, add_special_tokens=False).input_ids])
            for part in (passage.before, passage.text)
        )
        return before[:, :-1], torch.cat([before[:, -1:], text], 1)

    def read(self, passage: Passage) -> tuple[Session, torch.Tensor]:
        """A session that has read what comes before a passage, and the tokens [1, T + 1] that it is scored on."""
        before, tokens = self.tokens(passage)
        session = self.lm.session(capacity=before.shape[1] + tokens.shape[1])
        session.prefill(before)
        return session, tokens

    def score(self, passage: Passage) -> dict[str, dict[str, Any]]:
        """By setting the `bits` of a passage and the `shares` [3] that its steps realised; and its `tokens`."""
        parent, tokens = self.read(passage)
        count, found = tokens.shape[1] - 1, {}
        for name, setting in self.settings.items():
            session = parent.fork(1, count + self.lm.sparsity.page_size)
            if isinstance(setting, Budget):
                scored = scored_under(session, self.lm.policy(), tokens, setting.tensor(1))
            else:
                scored = session.score(tokens, torch.tensor(setting, dtype=torch.float64).expand(1, count, 3))
            bits = -float(scored.log_probabilities.double().sum()) / math.log(2)
            found[name] = {"bits": bits, "shares": scored.realised[0].mean(0).tolist(), "tokens": count}
        return found

    def turns(self, passage: Passage) -> dict[str, Callable[[], float]]:
        """By setting a call that decodes the passage's first tokens and gives the mean step's milliseconds."""
        parent, tokens = self.read(passage)
        return {name: self._turn(parent.fork(1, STEPS), setting, tokens[0]) for name, setting in self.settings.items()}

    def _turn(self, session: Session, setting: Setting, tokens: torch.Tensor) -> Callable[[], float]:
        def turn() -> float:
            if isinstance(setting, Budget):
                step = policy_step(session, self.lm.policy(), setting.tensor(1), STEPS)
            else:
                step = constant_step(session, setting)
            coming = cycle(tokens.split(1))
            return statistics.fmean(steps(session, lambda _: step(next(coming)), tokens[:1]))

        return turn


def files(asked: argparse.Namespace) -> list[File]:
    """Every model in its file's own type, with its policy, and in the other types. Raises `SolmError` for a model that
    cannot be run here."""
    python = peers.python_with("llama.cpp", [*asked.peer_python, sys.executable]) if asked.types else None
    if asked.types and python is None:
        raise SolmError("--types: only llama.cpp can make files of other types, and it is not installed")
    found = []
    for model in asked.model:
        path, policy = gguf_of(model), None
        if path is None:
            raise SolmError(f"--model: {model} is no GGUF file")
        facts = checks.model_config(model, backend="cpu")
        try:
            policy = checks.trained_policy(AUTO, facts)
        except SolmError as error:
            reason = str(error).removeprefix("--policy: ")
            print(f"{model}: {reason}; its MLP shares are set instead", file=sys.stderr)
        found.append(File(model, model, peers.file_type(path), True, policy))
        for kind in asked.types:
            if python is not None and kind != found[-1].type:
                found.append(File(model, str(peers.quantised(python, path, kind)), kind, False, None))
    return found


def measure(
    asked: argparse.Namespace, texts: list[Passage], rungs: list[Rung], parts: Parts, progress: Progress
) -> list[dict[str, Any]]:
    """Every rung at every setting: a point each."""
    scores: dict[tuple[int, str], list[dict[str, Any]]] = {}
    total = len(texts) * len(rungs)
    for number, passage in enumerate(texts):  # texts outside, so that each takes as long as the others
        for place, rung in enumerate(rungs):
            progress.show("texts scored", number * len(rungs) + place, total, rung.name)
            name = f"{place} text {number}"
            for setting, found in parts.get(name, lambda r=rung, p=passage: r.score(p)).items():  # type: ignore[misc]
                scores.setdefault((place, setting), []).append(found)
    taken = parts.get("milliseconds", lambda: clocked(rungs, texts[0], asked.rounds, progress))
    bytes_each = np.array([passage.bytes for passage in texts])
    points = []
    for (place, setting), found in scores.items():
        rung = rungs[place]
        bits, dense = (
            np.array([one["bits"] for one in scores[place, name]]) / bytes_each for name in (setting, "dense")
        )
        points.append({
            "model": rung.file.model if rung.file.model.startswith("builtin:") else Path(rung.file.model).name,
            "type": rung.file.type, "own_type": rung.file.own, "setting": setting,
            "shares": np.mean([one["shares"] for one in found], 0).tolist(),
            "bytes_per_token": float(bytes_each.sum() / sum(one["tokens"] for one in found)),
            "bits_per_byte": float(bits.mean()), "texts": bits.tolist(),
            "minus_dense": paired_difference(bits, dense)._asdict(),
            "milliseconds": taken[f"{place} {setting}"],
        })  # fmt: skip
    return points


def clocked(rungs: list[Rung], passage: Passage, rounds: int, progress: Progress) -> dict[str, dict[str, float]]:
    """Milliseconds of a step by rung and setting, all of them in turns."""
    turns: dict[str, Callable[[], float]] = {}
    for place, rung in enumerate(rungs):
        progress.show("reading for the steps that are timed", place, len(rungs), rung.name)
        turns |= {f"{place} {setting}": turn for setting, turn in rung.turns(passage).items()}
    done, total = 0, len(turns) * (rounds + 1)

    def shown_turn(turn: Callable[[], float]) -> float:
        nonlocal done
        progress.show("timing steps", done, total)
        done += 1
        return turn()

    found = in_turns({name: lambda turn=turn: shown_turn(turn) for name, turn in turns.items()}, rounds)  # type: ignore[misc]
    return {name: spread(each) for name, each in found.items()}


def checked(options: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with lists as lists; ends with one line and code 2 for one that is wrong."""
    from gguf import LlamaFileType

    asked = options.parse_args()
    for name in ("texts", "context", "length", "rounds", "budgets"):
        if getattr(asked, name) < 1:
            options.error(f"--{name} {getattr(asked, name)}: must be at least 1")
    asked.types = asked.types.split(",") if asked.types else []
    for kind in asked.types:
        if f"MOSTLY_{kind}" not in LlamaFileType.__members__:
            options.error(f"--types {kind}: no type of a GGUF file")
    try:
        asked.mlp = numbers(asked.mlp)
    except ValueError:
        asked.mlp = [0.0]
    if not all(0 < share < 1 for share in asked.mlp):
        options.error("--mlp: must be shares between 0 and 1, separated by commas")
    return asked


def main() -> None:
    options = parser(__doc__, "rounds", several=True)
    options.add_argument("--data", action="append", required=True, help="held-out text, as for `solm eval`; repeatable")
    options.add_argument("--types", help="also in these types of GGUF files, such as Q8_0,Q4_0")
    options.add_argument("--budgets", type=int, default=4, help="so many budgets of a policy")
    options.add_argument("--mlp", default="0.8,0.6", help="MLP shares of a model for which no policy ships")
    options.add_argument("--texts", type=int, default=12, help="passages, as many from every source")
    options.add_argument("--context", type=int, default=4000, help="characters read before a passage")
    options.add_argument("--length", type=int, default=512, help="characters of a passage")
    options.add_argument(
        "--peer-python", action="append", default=[], help="the Python of another environment to look for llama.cpp in"
    )
    asked = checked(options)
    try:
        texts = passages(asked.data, asked.texts, asked.context, asked.length)
        found = files(asked)
        with resumable(asked.out) as partial, progress_bar() as progress:
            progress.show("loading", 0, None)
            rungs = [
                Rung(file, default_kv_cache(file.model, "auto"), asked.budgets, asked.mlp, asked.context)
                for file in found
            ]
            key = [[[passage.before, passage.text] for passage in texts], [rung.name for rung in rungs]]
            key += [[{name: str(setting) for name, setting in rung.settings.items()} for rung in rungs], asked.rounds]
            points = measure(asked, texts, rungs, Parts(partial, key), progress)
            progress.stop()
            names = [Path(source).name for source in asked.data]
            results = {"data": names, "bytes": sum(passage.bytes for passage in texts), "points": points}
            finish("ladder", asked, results, lines(points))
    except SolmError as error:
        options.error(str(error))


def lines(points: list[dict[str, Any]]) -> list[str]:
    """A table for a terminal."""
    told = [f"{'model':44} {'type':8} {'setting':14} {'ms per token':>26} {'bits per byte':>13}  above dense"]
    for point in points:
        loss = point["minus_dense"]
        told.append(
            f"{point['model']:44} {point['type']:8} {point['setting']:14} {shown(point['milliseconds'], 2):>26} "
            f"{point['bits_per_byte']:13.4f}  {loss['value']:+.4f} [{loss['low']:+.4f}, {loss['high']:+.4f}]"
        )
    return told


if __name__ == "__main__":
    main()
