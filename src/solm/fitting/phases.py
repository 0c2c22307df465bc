"""The phases of a fit, each from files of the folder to one more file."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack

import torch

from solm.core.actions import ActionSpace
from solm.core.budget import Budgets
from solm.core.cost import StepTimings, read_timings
from solm.core.curve import CURVE, BudgetCurve, CurvePoint, spaced_budgets
from solm.core.errors import SolmError
from solm.core.files import read_json, read_model, resumable, write_json, write_text
from solm.core.parts import Parts
from solm.core.sparsity import SparsityConfig
from solm.core.thresholds import ChannelThresholds
from solm.data.windows import TokenStream
from solm.evaluation.baselines import BaselineRequest, constant, teal, upper_bits
from solm.evaluation.perplexity import EvaluationSettings, evaluate
from solm.evaluation.result import EvaluationResult
from solm.evaluation.step_timing import measure
from solm.fitting.folder import Files
from solm.fitting.job import Job
from solm.fitting.own_texts import own_texts
from solm.fitting.plan import BUDGETS, SCHEDULES
from solm.fitting.site_parts import measured_parts
from solm.policies.artifact import WEIGHTS, TrainedPolicy
from solm.policies.priced import SAME_COSTS
from solm.runtime.language_model import LanguageModel
from solm.training.allocate import find_allocation, trusted
from solm.training.checkpoint import CONFIG, RunFolder, read_stored
from solm.training.config import ValueTrainConfig
from solm.training.sources import Record, draw_halves, draw_windows, provenance
from solm.training.values import average_costs, collect, cost_factors, fitted_policy, read_samples

TIMINGS, THRESHOLDS, ALLOCATION = "timings.json", "thresholds.json", "allocation.json"
COSTS, LONG_COSTS, EVALUATION = "level-costs.json", "long-contexts.json", "evaluation.json"
TRAINING, COLLECTED, FITTED = "training", "training/collected.json", "training/policy/policy_config.json"
POLICY = "policy/policy_config.json"
SPACE = ActionSpace.preset("sites")
"""Levels whose costs are learned."""
CHOICES = ActionSpace.preset("sites-fine")
"""Levels that the policy chooses from."""
_LAYER = 4
_REPEATS, _DISTURBED = 2, 0.05
"""How often timings are repeated while two measurements of one step differ by more than this."""
_WORST_FLOOR = 0.98
"""Share of the dense step's time above which the lowest levels save nothing that is worth a fit."""


def time_steps(job: Job) -> None:
    """Milliseconds of steps at every level. Raises `SolmError` where no level saves any."""
    sizes = job.sizes("timings")
    contexts = sizes.timing_contexts
    tokens = job.texts.train[0].beginning(contexts[-1] + 1)
    found = measure(job.lm, tokens, contexts, sizes.timing_rounds, job.progress("timings"))
    for _ in range(_REPEATS):
        apart = {seen: by for seen, by in zip(contexts, found.disturbances, strict=True) if by > _DISTURBED}
        if not apart:
            break
        job.remark(
            f"timings: two measurements of one step differ by {max(apart.values()):.0%}; those after "
            f"{', '.join(f'{seen:,}' for seen in apart)} tokens are repeated"
        )
        found = found.lowest(measure(job.lm, tokens, tuple(apart), sizes.timing_rounds, job.progress("timings")))
    if max(found.disturbances) > _DISTURBED:
        job.remark(
            f"timings: they still differ by {max(found.disturbances):.0%}, so budgets in time are no surer than that; "
            "other processes use this machine"
        )
    check_worth(job.lm, found, sizes.context)
    write_text(job.folder.path / TIMINGS, found.model_dump_json(indent=2) + "\n")


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
    sizes, told = job.sizes("thresholds"), job.progress("thresholds")
    windows = draw_windows(job.texts.train, sizes.threshold_texts, sizes.context, job.generator())
    told(0, 1)
    found = job.lm.backend.channel_thresholds(windows, job.lm.sparsity.sites)
    told(1, 1)
    write_text(job.folder.path / THRESHOLDS, found.model_dump_json() + "\n")


def deal_out(job: Job) -> None:
    """What every layer, and where pages are worth it every KV head, keeps of an action."""
    sizes = job.sizes("allocation", read_timings(job.folder.path / TIMINGS))
    windows = draw_halves(
        job.texts.train, sizes.allocation_texts, sizes.context + sizes.allocation_length, job.generator()
    )
    find_allocation(
        job.lm.with_policy(None, _plain(job)), windows, (sizes.context,), job.folder.path / ALLOCATION,
        job.progress("allocation"), sizes.allocation_axes,
    )  # fmt: skip


def collect_samples(job: Job) -> None:
    """What random schedules cost, token by token."""
    config = _training(job, "samples")
    folder = job.folder.path / TRAINING
    if (folder / CONFIG).exists() and read_stored(folder) != config:
        shutil.rmtree(folder)  # made from another allocation
    run = RunFolder(folder, config)
    told = job.progress("samples")
    try:
        told(0, config.batches)
        collect(_allocated(job), config, run, _sampled(job), lambda record: told(int(record["update"]), config.batches))
    finally:
        run.close()
    write_json(job.folder.path / COLLECTED, {"batches": config.batches})


def _sampled(job: Job) -> list[TokenStream]:
    """The texts of the samples: those given, and those that the model continued."""
    return [*job.texts.train, *own_texts(job)]


def cost_levels(job: Job) -> None:
    """What every level costs where all steps take it."""
    config = _training(job, "level costs")
    key = [config.model_dump(mode="json"), [stream.fingerprint for stream in job.texts.train]]
    with resumable(job.folder.path / COSTS) as partial:
        costs = average_costs(
            _allocated(job), config, job.texts.train, parts=Parts(partial, key), progress=job.progress("level costs")
        )
        write_json(job.folder.path / COSTS, [axis.tolist() for axis in costs])


def cost_long_contexts(job: Job) -> None:
    """What level costs are after long contexts, where pages are worth much and little of them is needed."""
    sizes, config = job.sizes("long contexts"), _training(job, "level costs")
    if not sizes.long_contexts:
        write_json(job.folder.path / LONG_COSTS, [])
        return
    near, told = _level_costs(job), job.progress("long contexts")
    in_all = sizes.long_texts * len(sizes.long_contexts)
    told(0, in_all)
    found: list[tuple[int, tuple[float, ...]]] = [(sizes.context, SAME_COSTS)]
    with ExitStack() as kept:
        for number, context in enumerate(sizes.long_contexts):
            after = config.model_copy(update={"level_cost_context": context, "level_cost_texts": sizes.long_texts})
            key = [after.model_dump(mode="json"), [stream.fingerprint for stream in job.texts.train]]
            partial = kept.enter_context(resumable(job.folder.path / f"long-contexts-{context}.json"))
            far = average_costs(
                _allocated(job), after, job.texts.train, 1, Parts(partial, key),
                lambda done, _, before=number * sizes.long_texts: told(before + done, in_all),  # type: ignore[misc]
            )  # fmt: skip
            found.append((context, cost_factors(near, far)))
        write_json(job.folder.path / LONG_COSTS, found)


def _level_costs(job: Job) -> list[torch.Tensor]:
    return [torch.tensor(axis, dtype=torch.float64) for axis in read_json(job.folder.path / COSTS)]


def fit_network(job: Job) -> Files:
    """The policy, not yet compared."""
    config, costs = _training(job, "level costs"), _level_costs(job)
    samples = read_samples(job.folder.path / TRAINING, config)
    about: Record = provenance(config, _sampled(job))
    after = tuple((context, tuple(factors)) for context, factors in read_json(job.folder.path / LONG_COSTS))
    fitted = fitted_policy(_allocated(job), config, samples, costs, about, after).with_space(CHOICES)
    fitted.save_pretrained((job.folder.path / FITTED).parent)
    return [f"{TRAINING}/policy/{WEIGHTS}"]


def compare(job: Job) -> Files:
    """The policy and baselines at equal milliseconds, on text that nothing was learned from, after every context."""
    lm = _controlled(job)
    request = BaselineRequest(lm, lm.space, None, job.texts.context, job.seed)
    rivals = {"constant": constant(request), "teal": teal(request)}
    if lm.sparsity.bits_site == "weights":
        rivals["upper-bits"] = upper_bits(request)
    comparisons = job.sizes("comparison").comparisons
    batches = [-(-compared.texts // compared.batch) for compared in comparisons]
    told = job.progress("comparison")
    told(0, sum(batches))
    with ExitStack() as kept:  # until all are done, so that an interrupted phase repeats none
        for number in reversed(range(len(comparisons))):  # the file of the first says that all are whole
            compared, before = comparisons[number], sum(batches[number + 1 :])
            floor = lm.budgets().time_floor(compared.context + compared.length // 2)
            settings = EvaluationSettings(
                budgets=spaced_budgets(floor, BUDGETS), currency="time", trials=0, seed=job.seed, **compared._asdict()
            )
            path = job.folder.path / evaluation_file(job.texts.context, compared.context)
            result = evaluate(
                lm, job.texts.held_out, settings, None, kept.enter_context(resumable(path)),
                lambda done, _, before=before: told(before + done, sum(batches)), rivals=rivals,  # type: ignore[misc]
            )  # fmt: skip
            write_text(path, result.model_dump_json(indent=2) + "\n")
    return [evaluation_file(job.texts.context, compared.context) for compared in comparisons[1:]]


def evaluation_file(main: int, context: int) -> str:
    """The name of the file of the comparison after `context` tokens; main: the context of the first comparison."""
    return EVALUATION if context == main else f"evaluation-after-{context}.json"


def evaluations(job: Job) -> list[EvaluationResult]:
    """What `compare` found, by context; the main one first."""
    contexts = [compared.context for compared in job.sizes("comparison").comparisons]
    return [
        read_model(job.folder.path / evaluation_file(contexts[0], context), EvaluationResult) for context in contexts
    ]


def write_policy(job: Job) -> Files:
    """The policy with its curve and card."""
    fitted = TrainedPolicy.from_pretrained((job.folder.path / FITTED).parent)
    curve = curve_of(evaluations(job), read_timings(job.folder.path / TIMINGS))
    TrainedPolicy(fitted.config, fitted.network, curve).save_pretrained((job.folder.path / POLICY).parent)
    return [f"policy/{WEIGHTS}", f"policy/{CURVE}"]


def curve_of(results: list[EvaluationResult], timings: StepTimings) -> BudgetCurve:
    """The curve of the policy in evaluations at shares of the dense step's time, each after another context. The first
    one's texts are what the curve says of its texts."""
    points = [point for result in results for point in _points_of(result)]
    main = results[0]
    return BudgetCurve(
        timings=timings, points=tuple(sorted(points, key=lambda point: (point.context, point.budget))),
        texts=main.settings["texts"], tokens=main.points[0].tokens, data=main.settings["data"],
        sources=tuple(main.sources),
    )  # fmt: skip


def _points_of(result: EvaluationResult) -> Iterator[CurvePoint]:
    dense = result.points[0]
    for budget in result.settings["budgets"]:
        policy, loss, uniform = (result.arm(name, budget) for name in ("policy", "dense", "uniform"))
        assert policy is not None
        assert loss is not None
        assert policy.step_ms is not None
        assert dense.step_ms is not None
        assert loss.difference is not None
        yield CurvePoint(
            context=result.settings["context"], budget=budget, step_ms=policy.step_ms,
            speed=dense.step_ms / policy.step_ms, attention=policy.axes["attention"], mlp=policy.axes["mlp"],
            nats=loss.difference.value, low=loss.difference.low, high=loss.difference.high,
            uniform=None if uniform is None or uniform.difference is None else uniform.difference.value,
            texts=result.settings["texts"],
        )  # fmt: skip


def _plain(job: Job) -> SparsityConfig:
    """How the model's actions are carried out: by thresholds, and shares of channels count milliseconds."""
    parts = measured_parts(read_timings(job.folder.path / TIMINGS), job.lm.sparsity, job.lm.shapes)
    thresholds = read_model(job.folder.path / THRESHOLDS, ChannelThresholds)
    return job.lm.sparsity.model_copy(update={**parts, "thresholds": thresholds})


def _sparsity(job: Job) -> SparsityConfig:
    plain = _plain(job)
    return plain.under(trusted(read_json(job.folder.path / ALLOCATION)))


def _allocated(job: Job) -> LanguageModel:
    """The model without a policy, under the allocation."""
    return job.lm.with_policy(None, _sparsity(job))


def _controlled(job: Job) -> LanguageModel:
    """The model under the fitted policy, with this machine's timings."""
    lm = job.lm.with_policy(TrainedPolicy.from_pretrained((job.folder.path / FITTED).parent))
    lm.timings = read_timings(job.folder.path / TIMINGS)
    return lm


def _training(job: Job, phase: str) -> ValueTrainConfig:
    """The settings of the training, as far as they are fixed when `phase` begins: samples do not depend on those of the
    level costs."""
    samples, costs = job.sizes("samples"), job.sizes(phase)
    return ValueTrainConfig(
        model=job.lm.name, data=tuple(stream.name for stream in _sampled(job)), space=SPACE, sparsity=_sparsity(job),
        context=samples.context, length=samples.sample_length, texts=1, schedules=SCHEDULES,
        batches=samples.sample_batches, layer=min(_LAYER, job.lm.shapes.layers // 4),
        level_cost_context=samples.context, level_cost_length=costs.cost_length, level_cost_texts=costs.cost_texts,
        seed=job.seed,
    )  # fmt: skip
