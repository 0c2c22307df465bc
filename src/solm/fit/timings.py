"""The first phases of a fit: what steps take on this machine, and how large an activation must be to be kept."""

from solm.core.actions import ActionSpace
from solm.core.budget import Budgets
from solm.core.clock import UNSURE, StepClock
from solm.core.errors import SolmError
from solm.core.files import write_text
from solm.fit.folder import THRESHOLDS, TIMINGS
from solm.fit.job import Job
from solm.fit.texts import draw_windows
from solm.runtime.clock import measure_clock
from solm.runtime.language_model import LanguageModel

_WORST_FLOOR = 0.98
"""Share of the dense step's time above which the lowest levels save nothing that is worth a fit."""


def time_steps(job: Job) -> None:
    """What steps take on this machine. Raises `SolmError` where no level saves any time."""
    sizes, progress = job.sizes("timings"), job.progress("timings")
    found = measure_clock(job.lm, lambda _, done, total: progress(done, total), sizes.timing_seconds)
    if found.error > UNSURE:
        job.remark(
            f"timings: steps are known to within {found.error:.0%} of a dense step, so budgets in time are no surer "
            "than that; other processes use this machine"
        )
    check_worth(job.lm, found, sizes.context)
    write_text(job.folder.path / TIMINGS, found.model_dump_json(indent=2) + "\n")


def check_worth(lm: LanguageModel, timings: StepClock, context: int) -> None:
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
