"""The samples of a fit: what random actions cost, token by token, against the dense run of the same text."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from solm.backends.results import SplitSchedule
from solm.core.actions import DENSE, WHOLE, ActionSpace
from solm.core.files import Parts, read_json, read_tensors, resumable, write_json, write_tensors
from solm.fit.folder import COLLECTED, OWN_TEXTS, SAMPLES
from solm.fit.job import Job
from solm.fit.plan import GRID, OWN_ROWS, SCHEDULES
from solm.fit.texts import SCORED, continued, draw_windows
from solm.runtime.language_model import LanguageModel

HELD_OUT = 0.1
"""Part of the batches, from the end of every source, that the network is not fitted to."""
_LAYER = 4
_TILT = 3.0
"""Largest difference of log-odds between the lowest and the highest level of an axis in one row."""


def continue_texts(job: Job) -> None:
    """Dense samples at temperature 1, each after the beginning of a given text, so that a policy also learns from what
    it will see when the model generates; none where there is no time for it."""
    sizes, progress = job.sizes("own texts"), job.progress("own texts")
    rows: list[list[int]] = []
    with resumable(job.folder.path / OWN_TEXTS) as partial:
        parts = Parts(partial, job.folder.key)
        starts = (
            draw_windows(job.texts.train, sizes.own_texts, sizes.context, job.generator()) if sizes.own_texts else None
        )
        batches = () if starts is None else starts.split(OWN_ROWS)
        for number, some in enumerate(batches):

            def tell(done: int, before: int = number * SCORED) -> None:
                progress(before + done, len(batches) * SCORED)

            def sample(some: torch.Tensor = some, seed: int = job.seed + number) -> list[list[int]]:
                return continued(job.lm, some, sizes.context + SCORED, seed, tell)

            tell(0)
            rows += parts.get(str(number), sample)
        write_json(job.folder.path / OWN_TEXTS, rows)


def decision_layer(lm: LanguageModel) -> int:
    """The layer before which the policy decides: it reads the residual stream that enters it."""
    return min(_LAYER, lm.shapes.layers // 4)


def collect(job: Job) -> None:
    """One file of samples per text, and how many there are."""
    sizes, progress = job.sizes("samples"), job.progress("samples")
    folder = job.folder.path / SAMPLES / job.folder.key[:16]
    for other in folder.parent.glob("*"):
        if other != folder:
            shutil.rmtree(other)  # made from another allocation
    lm, length = job.lm.with_policy(None, job.sparsity), sizes.context + sizes.sample_length + 1
    parts = [stream.parted(HELD_OUT, length) for stream in [*job.texts.train, *job.own_texts]]
    progress(0, sizes.sample_batches)
    for number in range(sizes.sample_batches):
        path = folder / f"{number:05d}.safetensors"
        if not path.exists():
            generator, last = job.generator(2 + number), number >= fitted_batches(sizes.sample_batches)
            windows = draw_windows([part[last] for part in parts], 1, length, generator)
            before, after = draw_levels(GRID, 1, SCHEDULES, sizes.sample_length, generator)
            samples = collect_samples(lm, windows, sizes.context, decision_layer(lm), before, after, GRID)
            write_tensors(path, dict(vars(samples)))
        progress(number + 1, sizes.sample_batches)
    write_json(job.folder.path / COLLECTED, {"folder": folder.name, "texts": sizes.sample_batches})


def fitted_batches(batches: int) -> int:
    """Of so many batches those that the network is fitted to; the last ones are held out."""
    return int(batches * (1 - HELD_OUT))


def read_samples(job: Job) -> "tuple[Samples, int]":
    """What `collect` left, and of how many texts; raises `DamagedFileError`."""
    about = read_json(job.folder.path / COLLECTED)
    paths = sorted((job.folder.path / SAMPLES / about["folder"]).glob("*.safetensors"))
    return Samples.join((Samples(**read_tensors(path)) for path in paths), about["texts"]), about["texts"]


@dataclass(frozen=True)
class Samples:
    """M steps of texts under random schedules, text by text, as many of each.

    hidden: [M, H] bfloat16, the residual stream that enters the decision layer. before: [M, 3] float32, shares for the
    layers before it. after: [M, 3] uint8, levels of the grid for those from it on. saved: [M, 3] float32, the average
    shares that the step's schedule leaves out there. cost: [M] float32 nats, the log-probability of the next token in
    the dense run less that under the schedule. divergence: [M] float32 nats, its expectation over the next tokens that
    the dense run predicts (KL).
    """

    hidden: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    saved: torch.Tensor
    cost: torch.Tensor
    divergence: torch.Tensor

    def take(self, index: torch.Tensor | slice) -> "Samples":
        """Some of the steps; a slice shares memory with all of them."""
        return Samples(**{name: values[index] for name, values in vars(self).items()})

    @classmethod
    def join(cls, parts: "Iterable[Samples]", texts: int) -> "Samples":
        """All parts, each of one of `texts` texts. Of an iterator one part at a time is in memory beside the whole."""
        whole: dict[str, torch.Tensor] = {}
        count = 0
        for count, part in enumerate(parts, 1):
            for name, value in vars(part).items():
                whole.setdefault(name, value.new_empty((texts, *value.shape)))[count - 1] = value
        if count != texts:
            raise ValueError(f"there are {count} parts, not {texts}")
        return cls(**{name: values.flatten(0, 1) for name, values in whole.items()})


def draw_levels(
    grid: ActionSpace, texts: int, rows: int, steps: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random levels before the decision layer and from it on, [texts, rows, steps, 3] uint8 each.

    In three of four texts each row varies one axis, whose effect is then not covered by that of others; in the rest all
    axes vary. How often a row takes low levels is drawn per row, so that every budget occurs.
    """
    axes = [axis for axis, size in enumerate(grid.shape) if size > 1]
    joint = torch.rand(texts, generator=generator) < (0.25 if len(axes) > 1 else 0.0)
    number = torch.randint(len(axes), (texts, 1), generator=generator) + torch.arange(rows)
    alone = torch.tensor(axes)[number % len(axes)]
    drawn = []
    for axis, size in enumerate(grid.shape):
        rank = torch.linspace(0, 1, size)
        tilt = (torch.rand(texts, rows, 1, generator=generator) * 2 - 1) * _TILT
        weights = (tilt * rank).exp().flatten(0, 1)
        levels = torch.multinomial(weights, 2 * steps, replacement=True, generator=generator)
        varied = joint[:, None] | (alone == axis)
        drawn.append(torch.where(varied.flatten()[:, None], levels, size - 1).view(texts, rows, 2, steps))
    levels = torch.stack(drawn, -1).to(torch.uint8)
    return levels[:, :, 0], levels[:, :, 1]


def collect_samples(
    lm: LanguageModel,
    windows: torch.Tensor,
    context: int,
    layer: int,
    before: torch.Tensor,
    after: torch.Tensor,
    grid: ActionSpace,
) -> Samples:
    """Score windows [W, context + T + 1] densely and under levels before, after [W, R, T, 3] of `grid`.

    One prefill per text, which its dense run and its R schedules share.
    """
    texts, rows, steps = before.shape[:3]
    session, tokens = lm.session(capacity=context), windows[:, context:]
    session.prefill(windows[:, :context])
    everything = torch.tensor(DENSE, dtype=torch.float64).expand(texts, steps, 3)
    dense = session.fork(1, steps).score(tokens, everything, keep_logits=True)
    schedule = SplitSchedule(layer, *(keep_of(levels, grid).flatten(0, 1) for levels in (before, after)))
    forks = session.fork(rows, steps)
    found = forks.score(tokens.repeat_interleave(rows, 0), schedule, reference=dense.logits)
    assert found.divergences is not None
    whole = torch.tensor(WHOLE, dtype=torch.float64)
    saved = (1 - keep_of(after, grid) / whole).mean(2, keepdim=True).expand(after.shape)
    cost = dense.log_probabilities.repeat_interleave(rows, 0) - found.log_probabilities
    return Samples(
        found.stream.bfloat16().cpu().flatten(0, 1), (keep_of(before, grid) / whole).float().flatten(0, 2),
        after.flatten(0, 2), saved.float().flatten(0, 2), cost.cpu().flatten(), found.divergences.cpu().flatten(),
    )  # fmt: skip


def keep_of(levels: torch.Tensor, grid: ActionSpace) -> torch.Tensor:
    """Levels [..., 3] of `grid` as numbers (κ, ρ, bits): [..., 3] float64."""
    axes = (grid.attention, grid.mlp, grid.bits)
    return torch.stack(
        [torch.tensor(axis, dtype=torch.float64)[levels[..., index].long()] for index, axis in enumerate(axes)], -1
    )
