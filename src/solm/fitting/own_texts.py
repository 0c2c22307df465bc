"""Texts that the model continues itself: a policy also learns from what it will see when the model generates."""

import torch

from solm.core.files import read_json, resumable, write_json
from solm.core.parts import Parts
from solm.data.windows import TokenStream
from solm.fitting.job import Job
from solm.fitting.plan import OWN_ROWS
from solm.fitting.texts import SCORED, WholeTexts
from solm.training.self_text import sample_tokens
from solm.training.sources import draw_windows

OWN_TEXTS = "own-texts.json"
NAME = "the model's own"


def continue_texts(job: Job) -> None:
    """Dense samples at temperature 1, each after the beginning of a given text; none where there is no time for it."""
    sizes, told = job.sizes("own texts"), job.progress("own texts")
    length = sizes.context + SCORED
    rows: list[list[int]] = []
    with resumable(job.folder.path / OWN_TEXTS) as partial:
        parts = Parts(partial, [sizes.context, sizes.own_texts])
        if sizes.own_texts:
            batches = draw_windows(job.texts.train, sizes.own_texts, sizes.context, job.generator()).split(OWN_ROWS)
            steps = len(batches) * SCORED
            told(0, steps)
            for number, starts in enumerate(batches):

                def sample(number: int = number, starts: torch.Tensor = starts) -> list[list[int]]:
                    seed, before = job.seed + number, number * SCORED
                    found = sample_tokens(
                        job.lm, starts, length, seed, progress=lambda done: told(before + done, steps)
                    )
                    return list(found.tolist())

                rows += parts.get(str(number), sample)
        write_json(job.folder.path / OWN_TEXTS, rows)


def own_texts(job: Job) -> list[TokenStream]:
    """What `continue_texts` left, as one source; none where it had no time."""
    rows = read_json(job.folder.path / OWN_TEXTS)
    return [WholeTexts.of(torch.tensor(rows), NAME)] if rows else []
