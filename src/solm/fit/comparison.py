"""The last phases of a fit: the policy against its rivals on held-out text, and the policy with its curve."""

from collections.abc import Iterator
from contextlib import ExitStack

from solm.core.clock import StepClock
from solm.core.curve import CURVE, BudgetCurve, CurvePoint, spaced_budgets
from solm.core.files import read_model, resumable, write_text
from solm.evaluation.arms import BaselineRequest, constant, teal, upper_bits
from solm.evaluation.perplexity import EvaluationSettings, evaluate
from solm.evaluation.result import EvaluationResult
from solm.fit.folder import EVALUATION, POLICY, REPORT, Files
from solm.fit.job import Job
from solm.fit.plan import BUDGETS
from solm.policies.artifact import WEIGHTS, TrainedPolicy


def compare(job: Job) -> Files:
    """The policy and baselines at equal milliseconds, on text that nothing was learned from, after every context."""
    lm = job.lm.with_policy(job.fitted)
    lm.timings = job.timings
    request = BaselineRequest(lm, lm.space, None, job.texts.context, job.seed)
    rivals = {"constant": constant(request), "teal": teal(request)}
    if lm.sparsity.bits_site == "weights":
        rivals["upper-bits"] = upper_bits(request)
    comparisons = job.sizes("comparison").comparisons
    batches = [-(-compared.texts // compared.batch) for compared in comparisons]
    progress = job.progress("comparison")
    progress(0, sum(batches))
    with ExitStack() as kept:  # until all are done, so that an interrupted phase repeats none
        for number in reversed(range(len(comparisons))):  # the file of the first says that all are whole
            compared, before = comparisons[number], sum(batches[number + 1 :])
            floor = lm.budgets().time_floor(compared.context + compared.length // 2)
            settings = EvaluationSettings(
                budgets=spaced_budgets(floor, BUDGETS), currency="time", seed=job.seed, **compared._asdict()
            )
            path = job.folder.path / evaluation_file(job.texts.context, compared.context)
            result = evaluate(
                lm, job.texts.held_out, settings, None, kept.enter_context(resumable(path)),
                lambda done, _, before=before: progress(before + done, sum(batches)), rivals=rivals,  # type: ignore[misc]
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
    fitted, curve = job.fitted, curve_of(evaluations(job), job.timings)
    TrainedPolicy(fitted.config, fitted.network, curve).save_pretrained((job.folder.path / POLICY).parent)
    return [f"policy/{WEIGHTS}", f"policy/{CURVE}"]


def curve_of(results: list[EvaluationResult], clock: StepClock) -> BudgetCurve:
    """The curve of the policy in evaluations at shares of the dense step's time, each after another context. The first
    one's texts are what the curve says of its texts."""
    points = [point for result in results for point in _points_of(result)]
    main = results[0]
    return BudgetCurve(
        clock=clock, points=tuple(sorted(points, key=lambda point: (point.context, point.budget))),
        texts=main.settings["texts"], tokens=main.points[0].tokens, data=main.settings["data"],
    )  # fmt: skip


def _points_of(result: EvaluationResult) -> Iterator[CurvePoint]:
    dense = result.points[0]
    for budget in result.settings["budgets"]:
        policy, loss = result.arm("policy", budget), result.arm("dense", budget)
        assert policy is not None
        assert loss is not None
        assert policy.step_ms is not None
        assert dense.step_ms is not None
        assert loss.difference is not None
        yield CurvePoint(
            context=result.settings["context"], budget=budget, step_ms=policy.step_ms,
            speed=dense.step_ms / policy.step_ms, attention=policy.axes["attention"], mlp=policy.axes["mlp"],
            nats=loss.difference.value, low=loss.difference.low, high=loss.difference.high,
            texts=result.settings["texts"],
        )  # fmt: skip


def write_report(job: Job) -> None:
    """The comparison as a page."""
    from solm.evaluation import show

    page = show.page([(f"after {result.settings['context']:,} tokens", result) for result in evaluations(job)])
    write_text(job.folder.path / REPORT, page)
