"""`solm sweep` and `solm report`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from solm.cli import checks
from solm.cli.options import JsonOption, RevisionOption, TrustOption
from solm.cli.sources import read_sources
from solm.core.errors import SolmError


def sweep(
    config: Annotated[Path, typer.Argument(help="YAML file: models, policies, spaces, data, tasks, budgets, ...")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for results; an interrupted sweep there continues.")],
    ray: Annotated[
        bool, typer.Option("--ray", help="Run the jobs on Ray: on RAY_ADDRESS, else on this machine (extra: ray).")
    ] = False,
    ray_cores: Annotated[int, typer.Option(help="Cores for each job on Ray.", min=1)] = 1,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    json: JsonOption = False,
) -> None:
    """Run a grid of evaluations. An interrupted sweep continues with the same command.

    \b
    Example of a file:
      policies: ["builtin:smollm2-135m"]
      spaces: [mlp-fine, joint-27]
      data: [wiki.txt, books.jsonl]
      tasks: [arc_easy, lambada_openai]
      budgets: [0.55, 0.65, 0.75]
      texts: 64

    \b
    Examples:
      solm sweep sweep.yaml --out runs/sweep
      solm report runs/sweep/results.jsonl --out report.html
    """
    import logging

    from solm.cli.output import output, print_json, progress_bar
    from solm.core.budget import Budget
    from solm.evaluation.sweep import read_config
    from solm.evaluation.sweep import sweep as run
    from solm.training.config import read_values

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if not config.exists():
        raise SolmError(f"CONFIG: no file {config}")
    given: dict[str, Any] = {} if revision is None else {"revision": revision}
    if trust_remote_code:
        given["trust_remote_code"] = True
    chosen = read_config(config, read_values(config) | given)
    checks.out_folder(out)
    for source in chosen.data:
        with checks.option(f"{config}: data"):
            read_sources(source, source)
    for model in chosen.models:
        where = f"{config}: models"
        known = checks.model_config(model, chosen.revision, chosen.trust_remote_code, where)
        checks.tokenizer(model, chosen.revision, chosen.trust_remote_code, typed=where)
        for policy in chosen.policies:
            for space in chosen.spaces:
                grid = checks.space_of(space)
                trained = checks.trained_policy(policy, known, grid, f"{config}: policies")
                offered = trained.config.space if trained is not None else grid
                assert offered is not None  # the configuration has spaces where there is no policy
                with checks.option(f"{config}: budgets"):
                    for budget in chosen.budgets:
                        Budget.from_net(budget, offered)
        if chosen.data:
            checks.room(known, chosen.context + chosen.length, f"{where}: {model}: context and length")
    with progress_bar() as progress:
        paths = run(
            chosen, out, lambda job, done, total: progress.show("evaluating", done, total, job),
            ray_cores if ray else None,
        )  # fmt: skip
    if json:
        print_json({"results": str(out / "results.jsonl"), "files": [str(path) for path in paths]})
        return
    output().print(f"{len(paths)} results: {out / 'results.jsonl'}")


def report(
    results: Annotated[list[Path], typer.Argument(help="Results of eval and tasks (.json) or sweep (.jsonl).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the page.")] = Path("report.html"),
    json: JsonOption = False,
) -> None:
    """Write one self-contained HTML page about results of eval, tasks or sweep.

    Evaluations on one page must be of the same model and texts.

    \b
    Examples:
      solm report runs/sweep/results.jsonl
      solm report docs/results/policies/*.json --out report.html
    """
    from solm.cli.output import output, print_json
    from solm.core.files import write_text

    checks.out_file(out)
    for path in results:
        if not path.is_file():
            raise SolmError(f"RESULTS: no file {path}")
    from solm.evaluation.report.combined import render
    from solm.evaluation.report.read import read_results

    write_text(out, render(read_results(results)))
    if json:
        print_json({"report": str(out)})
        return
    output().print(f"report: {out}")
