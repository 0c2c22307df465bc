"""The first phases of a fit: what steps take on this machine, and how large an activation must be to be kept."""

from solm.core.actions import ActionSpace
from solm.core.budget import Budgets
from solm.core.cost import StepTimings
from solm.core.errors import SolmError
from solm.core.files import write_text
from solm.evaluation.step_timing import measure
from solm.fit.folder import THRESHOLDS, TIMINGS
from solm.fit.job import Job
from solm.fit.texts import draw_windows
from solm.runtime.language_model import LanguageModel

_REPEATS, _DISTURBED = 2, 0.05
"""How often timings are repeated while two measurements of one step differ by more than this."""
_WORST_FLOOR = 0.98
"""Share of the dense step's time above which the lowest levels save nothing that is worth a fit."""


def time_steps(job: Job) -> None:
    """Milliseconds of steps at every level. Raises `SolmError` where no level saves any."""
    sizes = job.sizes("timings")
    contexts = sizes.timing_contexts
    tokens = job.texts.train[0].beginning(contexts[-1] + 1)
    timings = measure(job.lm, tokens, contexts, sizes.timing_rounds, job.progress("timings"))
    for _ in range(_REPEATS):
        apart = {seen: by for seen, by in zip(contexts, timings.disturbances, strict=True) if by > _DISTURBED}
        if not apart:
            break
        job.remark(
            f"timings: two measurements of one step differ by {max(apart.values()):.0%}; those after "
            f"{', '.join(f'{seen:,}' for seen in apart)} tokens are repeated"
        )
        timings = timings.lowest(measure(job.lm, tokens, tuple(apart), sizes.timing_rounds, job.progress("timings")))
    if max(timings.disturbances) > _DISTURBED:
        job.remark(
            f"timings: they still differ by {max(timings.disturbances):.0%}, so budgets in time are no surer than "
            "that; other processes use this machine"
        )
    check_worth(job.lm, timings, sizes.context)
    write_text(job.folder.path / TIMINGS, timings.model_dump_json(indent=2) + "\n")


def check_worth(lm: LanguageModel, timings: StepTimings, context: int) -> None:
    """Raises `SolmError` where even the lowest levels save no time after `context` tokens."""
    space = ActionSpace.preset("cpu-fine")
    floor = Budgets(space, lm.sparsity, lm.shapes, timings=timings).time_floor(context)
    if floor > _WORST_FLOOR:
        raise SolmError(
            f"steps of this model take at least {floor:.3f} of the dense step's time, whatever they leave out "
            f"({timings.backend}, {context} tokens): there is nothing to fit"
        )


def find_thresholds(job: Job) -> None:
    """How large an activation must be for its channel to be kept, by the share of channels to keep."""
    sizes, progress = job.sizes("thresholds"), job.progress("thresholds")
    windows = draw_windows(job.texts.train, sizes.threshold_texts, sizes.context, job.generator())
    progress(0, 1)
    thresholds = job.lm.backend.channel_thresholds(windows, job.lm.sparsity.sites)
    progress(1, 1)
    write_text(job.folder.path / THRESHOLDS, thresholds.model_dump_json() + "\n")
