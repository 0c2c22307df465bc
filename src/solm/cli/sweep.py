"""`solm sweep` and `solm report`."""

from pathlib import Path
from typing import Annotated

import typer

from solm.cli.options import output, progress_bar
from solm.core.errors import SolmError


def sweep(
    config: Annotated[Path, typer.Argument(help="YAML file: models, policies, spaces, data, tasks, budgets, ...")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder; an interrupted sweep there goes on.")],
    ray: Annotated[
        bool, typer.Option("--ray", help="Run the jobs on Ray: on RAY_ADDRESS, else on this machine (extra: ray).")
    ] = False,
    ray_cores: Annotated[int, typer.Option(help="Cores of each job on Ray.", min=1)] = 1,
) -> None:
    """Run a grid of evaluations; killed at any moment and run again, it goes on where it was.

    Example of a file:

        policies: ["builtin:smollm2-135m"]

        spaces: [mlp-fine, joint-27]

        data: [wiki.txt, books.jsonl]

        tasks: [arc_easy, lambada_openai]

        budgets: [0.55, 0.65, 0.75]

    Then: solm sweep sweep.yaml --out runs/sweep; solm report runs/sweep/results.jsonl --out report.html
    """
    import logging

    from solm.evaluation.sweep import read_config
    from solm.evaluation.sweep import sweep as run
    from solm.training.config import read_values

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    logging.getLogger("lm_eval.solm").setLevel(logging.WARNING)
    if not config.exists():
        raise SolmError(f"no file {config}")
    chosen = read_config(config, read_values(config))
    with progress_bar() as progress:
        bar = progress.add_task("evaluating", total=None, note="")
        paths = run(
            chosen, out, lambda job, done, total: progress.update(bar, completed=done, total=total, note=job),
            ray_cores if ray else None,
        )  # fmt: skip
    output().print(f"{len(paths)} results: {out / 'results.jsonl'}")


def report(
    results: Annotated[list[Path], typer.Argument(help="Results of eval, tasks (.json) or sweep (.jsonl).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("report.html"),
) -> None:
    """Turn any set of result files into one self-contained HTML page.

    Examples:

        solm report docs/results/policies/*.json --out report.html

        solm report runs/sweep/results.jsonl
    """
    from solm.core.files import write_text
    from solm.evaluation.report.combined import render
    from solm.evaluation.report.read import read_results

    write_text(out, render(read_results(results)))
    output().print(f"report: {out}")
