"""`solm report`: any set of result files as one page."""

from html import escape
from typing import Any

from solm.core.actions import AXES
from solm.core.errors import counted
from solm.evaluation.pictures import blank, picture, violins
from solm.evaluation.report.actions import histograms, texts
from solm.evaluation.report.page import difference, head, image, perplexity_table
from solm.evaluation.report.read import Result
from solm.evaluation.result import EvaluationResult, TaskResult
from solm.evaluation.show import budget_digits, plot, verdict


def render(found: list[tuple[str, Result]]) -> str:
    """The page."""
    evaluations = [(name, result) for name, result in found if isinstance(result, EvaluationResult)]
    tasks = [(name, result) for name, result in found if isinstance(result, TaskResult)]
    parts = [head("solm results"), "<h1>Results</h1>"]
    if evaluations:
        parts.append(
            "<p class=soft>Every arm saw the same tokens. Differences are policy minus arm with paired bootstrap 95 % "
            "intervals. Divergence: how far an arm's predictions lie from those of dense steps, as KL in nats per "
            "token.</p>"
        )
    for name, result in evaluations:
        parts += _evaluation(name, result)
    if tasks:
        parts += ["<h2>Tasks</h2>", *(_task_table(name, result) for name, result in tasks)]
    compared: list[tuple[str, EvaluationResult | TaskResult]] = [*evaluations, *tasks]
    controlled = [(name, run) for name, run in compared if run.kept_budgets()]
    if controlled:
        parts += ["<h2>Was the budget kept?</h2>"]
    for currency in dict.fromkeys(run.currency for _, run in controlled):
        same = [(name, run) for name, run in controlled if run.currency == currency]
        parts += [image(_adherence(same, currency), f"realised against requested {currency} of the policies")]
    parts += ["<h2>Where it comes from</h2><ul>"]
    for name, any_result in found:
        made: dict[str, Any] = any_result.environment
        where = f"commit {made['commit']}, {made['machine']['processor']}"
        parts.append(f"<li>{escape(name)}: <code>{escape(any_result.command)}</code>, {escape(where)}</li>")
    return "\n".join([*parts, "</ul>"]) + "\n"


def _evaluation(name: str, result: EvaluationResult) -> list[str]:
    s = result.settings
    windows = f"{counted(s['texts'], 'text')} of {s['length']} tokens after {s['context']} dense ones"
    measured = f"{s['model']} ({s['dtype']}), {windows}, {s['data']}"
    parts = [f"<h2>{escape(name)}</h2><p class=soft>{escape(measured)}. {_levels(s['space'])}</p><ul>"]
    parts += [f"<li>{escape(line)}</li>" for line in verdict(result)]
    parts += ["</ul>", image(plot(result), f"{name}: perplexity against {result.currency}"), perplexity_table(result)]
    if result.trials:
        parts += [
            "<h3>Random search</h3>",
            image(violins(result), f"{name}: perplexity of random schedules, with the policy and a static schedule"),
        ]
    if result.use:
        parts += ["<h3>What the policy did</h3>", histograms(result)]
    if result.examples:
        parts += [
            "<h3>Texts under the policy</h3><p class=soft>Background: bytes read by the step that processes the token, "
            "from green (the least) to red (the most) within a text. Hover for the action.</p>",
            texts(result),
        ]
    return parts


def _levels(space: dict[str, Any]) -> str:
    return "; ".join(f"{axis} {', '.join(f'{level:g}' for level in space[axis])}" for axis in AXES)


def _task_table(name: str, result: TaskResult) -> str:
    rows, last = [], None
    for point in result.points:
        place = (point.task, point.budget)
        first = "" if place == last else " class=first"
        last = place
        scores = [f"{point.scores[metric]:.3f}" if metric in point.scores else "" for metric in ("acc", "margin")]
        gaps = [difference(point.differences.get(metric), 1) for metric in ("acc", "margin")]
        rows.append(
            f"<tr{first}><td>{budget_digits(point.budget)}<td>{escape(point.task)}, {escape(point.arm)}"
            f"<td>{point.questions}<td>{point.realised['net']:.3f}<td>{scores[0]}<td>{gaps[0]}<td>{scores[1]}<td>{gaps[1]}</tr>"
        )
    titles = "<th>budget<th>task, arm<th>questions<th>realised<th>acc<th>policy − arm<th>margin<th>policy − arm"
    return (
        f"<p class=soft>{escape(name)}: {_levels(result.settings['space'])}. Margin: log-likelihood of the right "
        "answer above the best wrong one, in nats.</p>"
        f"<div class=scroll><table><tr>{titles}</tr>{''.join(rows)}</table></div>"
    )


def _adherence(found: list[tuple[str, EvaluationResult | TaskResult]], currency: str) -> bytes:
    """PNG: what policies realised over what was asked for. Baselines are matched to them and left out."""
    figure, axes = blank(4.6, 4.4)
    axes.plot([0, 1], [0, 1], color="#adb5bd", lw=1)
    for name, result in found:
        asked, spent = zip(*result.kept_budgets(), strict=True)
        axes.plot(asked, spent, "o", label=name)
    axes.set(xlabel=f"requested {currency}", ylabel=f"realised {currency}", xlim=(0.3, 1), ylim=(0.3, 1))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return picture(figure)
