"""`solm fit`."""

from pathlib import Path

from solm.cli import checks
from solm.cli.options import ModelOptions, Seed
from solm.cli.output import Progress, Result, read_weights, say, table
from solm.core.curve import COLUMNS

_LEAST_TOKENS = 2056
"""Of every source; see `solm.fit.texts.Texts`."""


def fit(
    model: str,
    /,
    data: str,
    out: Path,
    minutes: float | None = None,
    precision: str | None = None,
    kv_cache_dtype: str | None = None,
    seed: Seed = 0,
    revision: str | None = None,
    trust_remote_code: bool = False,
    experts: bool = False,
) -> Result:
    """Make a policy for a model: time this machine, find an allocation, train, compare, and write policy and report.

    An interrupted fit continues with the same command. A quarter of every source is kept for the comparison.

    \b
    Examples:
      solm fit qwen2.5-coder-0.5b-instruct-q4_k_m.gguf --data texts/,code/ --out runs/qwen
      solm fit builtin:smollm2-135m --data pydoc:train --minutes 5 --out runs/smollm
      solm generate --model qwen2.5-coder-0.5b-instruct-q4_k_m.gguf --policy runs/qwen/policy --budget speed=1.1 "Why?"

    Args:
        out: Folder for the fit; an interrupted one there continues.
        minutes: Minutes to take, on this machine; by default 75 per billion weights, at least 5.
        experts: Of a mixture, leave out whole experts in place of channels.
    """
    from solm.backends.cpu.files.layout import readable_in_part
    from solm.core.files import KEPT
    from solm.evaluation import show
    from solm.fit.plan import PHASES
    from solm.fit.run import fit as run
    from solm.fit.texts import sample
    from solm.policies.artifact import TrainedPolicy

    checks.fit_options(out, minutes)
    prepared = ModelOptions(
        model, backend="cpu", precision=precision, kv_cache_dtype=kv_cache_dtype, revision=revision,
        trust_remote_code=trust_remote_code,
    ).prepare()  # fmt: skip
    assert prepared.source is not None  # with the cpu backend
    if experts:
        prepared.sparsity = "experts"
    elif precision == "nested" or (precision in (None, "auto") and readable_in_part(prepared.source)):
        say("solm: the policy will also choose how many bits of the MLP's weights a step reads")
        prepared.sparsity = "nested"
    sources = checks.read_sources(data, _LEAST_TOKENS)
    lm = read_weights(prepared)
    tokens = checks.streams([(name, sample(texts, seed)) for name, texts in sources], lm.tokenizer)
    sources.clear()  # from here on their tokens are enough
    numbers = {name: f"{number}/{len(PHASES)} {name}" for number, name in enumerate(PHASES, start=1)}
    try:
        with Progress() as progress:
            result = run(
                lm, tokens, out, minutes, seed,
                lambda phase, done, total, left: progress.show(
                    numbers[phase], done, total, f"whole fit: about {round(left / 60)} min left"
                ),
                say,
            )  # fmt: skip
    except KeyboardInterrupt:
        raise KeyboardInterrupt(KEPT) from None
    policy = out / "policy"
    curve = TrainedPolicy.from_pretrained(policy).curve
    assert curve is not None
    points = [point.model_dump(mode="json") for point in curve.points]
    lines = [*show.verdict(result), f"policy: {policy}"]
    return Result({"policy": str(policy), "points": points}, [table(curve.about, COLUMNS, curve.rows()), *lines])
