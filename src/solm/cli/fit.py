"""`solm fit`."""

from pathlib import Path
from typing import Annotated

import typer

from solm.cli import checks
from solm.cli.options import (
    JsonOption,
    KvCacheOption,
    PrecisionOption,
    RevisionOption,
    RunSeedOption,
    TrustOption,
)
from solm.cli.sources import long_enough, read_sources, streams
from solm.core.errors import SolmError

_LEAST_TOKENS = 2056
"""Of every source; see `solm.fit.texts.Texts`."""


def fit(
    model: Annotated[str, typer.Argument(help="Hub id, folder, .gguf file or builtin:smollm2-135m.")],
    data: Annotated[
        str,
        typer.Option(
            "--data", "-d", help="Text, separated by commas: files (.txt, .jsonl), folders, hub data sets, pydoc."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the fit; an interrupted one there continues.")],
    minutes: Annotated[
        float | None,
        typer.Option(help="Minutes to take, on this machine; by default 75 per billion weights, at least 5."),
    ] = None,
    backend: Annotated[
        str, typer.Option(help="auto or cpu, which is the same: only the cpu backend saves time.")
    ] = "auto",
    precision: PrecisionOption = None,
    kv_cache_dtype: KvCacheOption = None,
    seed: RunSeedOption = 0,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    json: JsonOption = False,
) -> None:
    """Make a policy for a model: time this machine, find an allocation, train, compare, and write policy and report.

    An interrupted fit continues with the same command. A quarter of every source is kept for the comparison.

    \b
    Examples:
      solm fit qwen2.5-coder-0.5b-instruct-q4_k_m.gguf --data texts/,code/ --out runs/qwen
      solm fit builtin:smollm2-135m --data pydoc:train --minutes 5 --out runs/smollm
      solm generate --model qwen2.5-coder-0.5b-instruct-q4_k_m.gguf --policy runs/qwen/policy --budget speed=1.1 "Why?"
    """
    from solm.backends.cpu.files.layout import readable_in_part
    from solm.backends.cpu.files.sources import source_of
    from solm.cli.output import curve_table, output, print_json, progress_bar, say
    from solm.core.interrupt import Interrupted
    from solm.evaluation import show
    from solm.fit.plan import PHASES
    from solm.fit.run import fit as run
    from solm.fit.texts import sample
    from solm.policies.artifact import TrainedPolicy
    from solm.runtime.load import load

    if backend not in ("auto", "cpu"):
        raise SolmError(f"--backend: {backend!r} is not auto or cpu, the backend whose steps save time")
    checks.finite("--minutes", minutes)
    if minutes is not None and not 0 < minutes <= 10_000:
        raise SolmError(f"--minutes: {minutes:g} is out of range: it must be above 0 and at most 10000")
    checks.out_folder(out)
    checks.backend("cpu", precision, kv_cache_dtype, "auto")
    checks.model_config(model, revision, trust_remote_code, "MODEL", backend="cpu")
    sources = read_sources(data)
    long_enough(sources, _LEAST_TOKENS)
    tokenizer = checks.tokenizer(model, revision, trust_remote_code, typed="MODEL")
    with checks.option("MODEL"):
        in_part = precision == "nested" or (
            precision in (None, "auto") and readable_in_part(source_of(model, revision))
        )
        if in_part:
            say("solm: the policy will also choose how many bits of the MLP's weights a step reads")
        lm = load(
            model, tokenizer=tokenizer, backend="cpu", precision=precision, kv_cache_dtype=kv_cache_dtype,
            revision=revision, trust_remote_code=trust_remote_code,
            sparsity="nested" if in_part else None,
        )  # fmt: skip
    tokens = streams([(name, sample(texts, seed)) for name, texts in sources], lm.tokenizer)
    sources.clear()  # from here on their tokens are enough
    numbers = {name: f"{number}/{len(PHASES)} {name}" for number, name in enumerate(PHASES, start=1)}
    with progress_bar() as progress:
        try:
            result = run(
                lm, tokens, out, minutes, seed,
                lambda phase, done, total, left: progress.show(
                    numbers[phase], done, total, f"whole fit: about {round(left / 60)} min left"
                ),
                say,
            )  # fmt: skip
        except Interrupted as interrupted:
            progress.stop()
            say("interrupted; finished measurements are kept. The same command continues")
            raise typer.Exit(interrupted.exit_code) from None
    policy = out / "policy"
    curve = TrainedPolicy.from_pretrained(policy).curve
    assert curve is not None
    if json:
        print_json({"policy": str(policy), "points": [point.model_dump(mode="json") for point in curve.points]})
        return
    console = output()
    console.print(curve_table(curve))
    for line in show.verdict(result):
        console.print(line)
    console.print(f"policy: {policy}")
