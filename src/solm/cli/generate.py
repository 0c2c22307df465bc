"""`solm generate`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from solm.cli.options import (
    DEFAULT_MODEL,
    BackendOption,
    DtypeOption,
    KvCacheOption,
    ModelOption,
    PolicyOption,
    PrecisionOption,
    SeedOption,
)


def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    model: ModelOption = DEFAULT_MODEL,
    policy: PolicyOption = None,
    budget: Annotated[
        str | None, typer.Option("--budget", "-b", help="Net keep such as 0.6, or attention=0.5,mlp=0.7,bits=8.")
    ] = None,
    schedule: Annotated[str | None, typer.Option(help="policy, dense, static or random.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply.")] = 128,
    temperature: Annotated[float | None, typer.Option(help="Sample at this temperature; greedy without.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Top-k sampling.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="transformers' repetition penalty.")] = None,
    seed: SeedOption = 0,
    dtype: DtypeOption = "auto",
    backend: BackendOption = "torch",
    precision: PrecisionOption = None,
    kv_cache_dtype: KvCacheOption = "auto",
    calibration: Annotated[
        Path | None, typer.Option(help="What solm bench measured; then budgets such as ms=4.5 work.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Generate text under a compute budget; in a terminal, tokens are coloured by what they cost.

    Examples:

        solm generate --policy runs/a/policy --budget 0.6 "Why is the sky blue?"

        solm generate --policy runs/a/policy --budget mlp=0.7,bits=8 --json "Hello" | jq .realised
    """
    from json import dumps

    from solm.runtime.generate import summarise
    from solm.runtime.load import load

    text = sys.stdin.read() if prompt == "-" else prompt
    options: dict[str, Any] = {
        "temperature": temperature, "top_p": top_p, "top_k": top_k, "repetition_penalty": repetition_penalty,
    }  # fmt: skip
    options = {name: value for name, value in options.items() if value is not None}
    lm = load(
        model,
        policy,
        dtype=dtype,
        backend=backend,
        precision=precision,
        kv_cache_dtype=kv_cache_dtype,
        timings=calibration,
    )
    ids = lm.encode(text)
    asked = lm.budget(budget, ids.shape[1] + max_new_tokens // 2)
    tokens = []
    coloured = sys.stdout.isatty() and not json
    for token in lm.stream(ids, budget=asked, policy=schedule, max_new_tokens=max_new_tokens, seed=seed, **options):
        tokens.append(token)
        if not json:
            print(paint(token.text, token.cost) if coloured else token.text, end="", flush=True)
    reply = summarise(lm, tokens, asked)
    if json:
        print(dumps(reply.as_dict(), ensure_ascii=False))
        return
    print()
    shares = ", ".join(f"{axis} {reply.compute.realised[axis]:.3f}" for axis in ("attention", "mlp", "bits", "net"))
    wanted = ", ".join(f"{axis} {reply.compute.requested[axis]:.3f}" for axis in ("attention", "mlp", "bits", "net"))
    print(f"requested: {wanted}", file=sys.stderr)
    print(f"realised:  {shares}; bytes read {reply.compute.bytes:.3f} of dense", file=sys.stderr)


def paint(text: str, cost: float) -> str:
    """`text` in a terminal colour from green (cheap) to red (dense)."""
    hot = min(1.0, max(0.0, (cost - 0.6) / 0.4))
    return f"\x1b[38;2;{int(60 + 170 * hot)};{int(190 - 110 * hot)};80m{text}\x1b[0m"
