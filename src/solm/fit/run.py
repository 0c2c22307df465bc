"""`fit`: all phases of a fit, in order, in one folder that an interrupted run goes on in."""

from collections.abc import Callable
from pathlib import Path

from solm.backends.machine import give_back_freed_memory
from solm.core.errors import SolmError, counted
from solm.core.provenance import environment
from solm.evaluation.result import EvaluationResult
from solm.evaluation.texts import TokenStream
from solm.fit import folder as files
from solm.fit.allocation import allocate
from solm.fit.comparison import compare, evaluations, write_policy, write_report
from solm.fit.costs import cost_levels, cost_long_contexts, find_thresholds, time_steps
from solm.fit.folder import About, Files, FitFolder
from solm.fit.job import Job, Report
from solm.fit.plan import PHASES, default_minutes
from solm.fit.regression import fit_network
from solm.fit.samples import collect, continue_texts
from solm.fit.texts import Texts
from solm.runtime.language_model import LanguageModel

_ALLOCATED = [files.TIMINGS, files.THRESHOLDS, files.ALLOCATION]
ORDER: tuple[tuple[str, str, list[str], Callable[[Job], Files]], ...] = (
    ("thresholds", files.THRESHOLDS, [], find_thresholds),
    ("timings", files.TIMINGS, [files.THRESHOLDS], time_steps),
    ("allocation", files.ALLOCATION, [files.TIMINGS, files.THRESHOLDS], allocate),
    ("own texts", files.OWN_TEXTS, [], continue_texts),
    ("samples", files.COLLECTED, [*_ALLOCATED, files.OWN_TEXTS], collect),
    ("level costs", files.COSTS, _ALLOCATED, cost_levels),
    ("long contexts", files.LONG_COSTS, [*_ALLOCATED, files.COSTS], cost_long_contexts),
    ("network", files.FITTED, [*_ALLOCATED, files.COLLECTED, files.COSTS, files.LONG_COSTS], fit_network),
    ("comparison", files.EVALUATION, [files.TIMINGS, files.FITTED], compare),
    ("policy", files.POLICY, [files.TIMINGS, files.FITTED, files.EVALUATION], write_policy),
)
"""Every phase with the file that it writes, those that it reads, and what does it and gives further files that it
wrote, which are read with the first."""


def fit(
    lm: LanguageModel,
    streams: list[TokenStream],
    out: Path,
    minutes: float | None = None,
    seed: int = 0,
    report: Report = lambda phase, done, total, left: None,
    remark: Callable[[str], None] = lambda text: None,
    strict: bool = True,
) -> EvaluationResult:
    """Fit a policy to a model without one, in the folder `out`, and compare it; the comparison after the context that
    it was learned after.

    ``out/policy`` holds the policy, its card and its curve, ``out/report.html`` the comparison as a page. Phases
    whose output is whole are skipped. A phase that was interrupted goes on where it stopped, but for the timings.

    minutes: in all, on this machine; by default by the model's size. report: how far it is. remark: gets the plan and
    what is worth saying, in lines. strict: refuse minutes that are too few instead of taking longer.

    Raises:
        KeyboardInterrupt: with at most the unit of work under way lost.
        DataError: too little text.
        RunMismatchError: `out` holds a fit of something else.
        SolmError: too few minutes, a backend that saves no time, steps that take the same time at every level.
    """
    if not lm.backend.name.startswith("cpu"):
        raise SolmError(f"a fit needs a backend whose steps save time: cpu, not {lm.backend.name}")
    texts = Texts.split(streams, lm.context)
    projections = 0.0 if lm.sparsity.mlp_site == "experts" else lm.shapes.projection_part
    lm = lm.with_policy(None, lm.sparsity.changed(projection_part=projections))
    minutes = default_minutes(lm.shapes) if minutes is None else minutes
    about = About(
        model=lm.identity.model_dump_json(exclude={"name"}), backend=lm.backend.name,
        processor=environment()["machine"]["processor"], threads=lm.threads, mlp_site=lm.sparsity.mlp_site,
        data={stream.name: stream.fingerprint for stream in streams}, minutes=minutes, seed=seed,
    )  # fmt: skip
    with FitFolder.opened(out, about) as folder:
        job = Job(lm, texts, folder, minutes, seed, report, remark)
        left = [name for name, output, inputs, _ in ORDER if not folder.is_done(name, output, inputs)]
        if not folder.is_planned:  # else the speed of today could refuse what was accepted before
            job.planned(job.speed(), strict=strict)
            phases = ", ".join(f"{name} {minutes * share:.1f}" for name, share in PHASES.items())
            remark(f"plan for {counted(minutes, 'minute')}: {phases}")
        elif left:
            spent = sum(folder.seconds.values()) / 60
            remark(f"goes on with {left[0]}, {spent:.1f} of {counted(minutes, 'minute')} in")
        for name, output, inputs, make in ORDER:
            give_back_freed_memory()
            if not folder.phase(name, output, inputs, lambda make=make: make(job)):  # type: ignore[misc]
                remark(f"{name}: done before")
        results = evaluations(job)
        folder.phase("report", files.REPORT, [files.EVALUATION], lambda: write_report(job))
        spent = sum(folder.seconds.values()) / 60
        remark(f"took {counted(round(spent, 1), 'minute')} in all")
    return results[0]
