"""`solm report`: any set of result files as one page."""

import io
import json
from html import escape
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from solm.actions import AXES
from solm.errors import DamagedFileError, SolmError
from solm.evaluation.result import SCHEMA_VERSION, EvaluationResult, TaskResult
from solm.evaluation.show import plot, told, verdict
from solm.report.page import difference, head, image, perplexity_table

Result = EvaluationResult | TaskResult
_SAME = ("model", "dtype", "sequences", "context", "length", "seed", "data")


def read_results(paths: list[Path]) -> list[tuple[str, Result]]:
    """The results in `paths`, files of one result (.json) or of one a line (.jsonl), under names of their own.

    Raises `DamagedFileError` for a half-written file or another schema version, and `SolmError` where results that
    would share a plot were measured on different tokens.
    """
    found: list[tuple[str, Result]] = []
    for path in paths:
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise SolmError(f"cannot read {path}: {error}") from error
        lines = [line for line in text.splitlines() if line.strip()] if path.suffix == ".jsonl" else [text]
        for number, line in enumerate(lines, start=1):
            name = path.stem if len(lines) == 1 else f"{path.stem}, line {number}"
            found.append((name, _parse(line, f"{path}, line {number}" if len(lines) > 1 else str(path))))
    if not found:
        raise SolmError("no results to report on: give at least one result file")
    _check_same_tokens(found)
    return found


def _parse(text: str, where: str) -> Result:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DamagedFileError(f"{where} is half-written or no JSON: {error.msg}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise DamagedFileError(f"{where} has schema version {version!r}; this solm reads {SCHEMA_VERSION}")
    kind = TaskResult if content.get("kind") == "tasks" else EvaluationResult
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise DamagedFileError(f"{where} is damaged: {str(error).splitlines()[0]}") from error


def _check_same_tokens(found: list[tuple[str, Result]]) -> None:
    first: tuple[str, EvaluationResult] | None = None
    for name, result in found:
        if not isinstance(result, EvaluationResult):
            continue
        if first is None:
            first = name, result
        changed = [key for key in _SAME if result.settings.get(key) != first[1].settings.get(key)]
        if result.data_fingerprint != first[1].data_fingerprint:
            changed.append("text")
        if changed:
            raise SolmError(
                f"{first[0]} and {name} differ in {', '.join(changed)}: their perplexities cannot share a page"
            )


def render(found: list[tuple[str, Result]]) -> str:
    """The page."""
    texts = [(name, result) for name, result in found if isinstance(result, EvaluationResult)]
    tasks = [(name, result) for name, result in found if isinstance(result, TaskResult)]
    parts = [head("solm results"), "<h1>Results</h1>"]
    if texts:
        s = texts[0][1].settings
        parts.append(
            f"<p class=soft>{escape(str(s['model']))} ({s['dtype']}), {s['sequences']} sequences of {s['length']} "
            f"tokens after {s['context']} dense ones, {escape(str(s['data']))}. Every arm saw the same tokens. "
            "Differences are policy minus arm with paired bootstrap 95 % intervals.</p>"
        )
    for name, result in texts:
        parts += [f"<h2>{escape(name)}</h2><p class=soft>{_levels(result.settings['space'])}</p><ul>"]
        parts += [f"<li>{escape(line)}</li>" for line in verdict(result)]
        parts += ["</ul>", image(plot(result), f"{name}: perplexity against net keep"), perplexity_table(result)]
    if tasks:
        parts += ["<h2>Tasks</h2>", *(_task_table(name, result) for name, result in tasks)]
    parts += [
        "<h2>Was the budget kept?</h2>",
        image(_adherence(found), "realised against requested share of every axis"),
        "<h2>Where it comes from</h2><ul>",
        *(f"<li>{escape(name)}: <code>{escape(result.command)}</code>, commit {result.environment['commit']}, "
          f"{result.environment['machine']['processor']}</li>" for name, result in found),
        "</ul>",
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


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
            f"<tr{first}><td>{told(point.budget)}<td>{escape(point.task)}, {escape(point.arm)}<td>{point.questions}"
            f"<td>{point.realised['net']:.3f}<td>{scores[0]}<td>{gaps[0]}<td>{scores[1]}<td>{gaps[1]}</tr>"
        )
    titles = "<th>budget<th>task, arm<th>questions<th>realised<th>acc<th>policy − arm<th>margin<th>policy − arm"
    return (
        f"<p class=soft>{escape(name)}: {_levels(result.settings['space'])}. Margin: log-likelihood of the right "
        "answer above the best wrong one, in nats.</p>"
        f"<div class=scroll><table><tr>{titles}</tr>{''.join(rows)}</table></div>"
    )


def _adherence(found: list[tuple[str, Result]]) -> bytes:
    """PNG: what policies realised net over what they were asked for; static, which is matched to them, is left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(4.6, 4.4), dpi=130)
    axes.plot([0, 1], [0, 1], color="#adb5bd", lw=1)
    for name, result in found:
        points = [point for point in result.points if point.arm == "policy"]
        if points:
            spent = [p.realised["net"] if isinstance(p.realised, dict) else p.realised for p in points]
            axes.plot([point.budget for point in points], spent, "o", label=name)
    axes.set(xlabel="requested net keep", ylabel="realised net keep", xlim=(0.3, 1), ylim=(0.3, 1))
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()
