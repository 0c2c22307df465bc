"""`solm generate`."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from solm.cli import checks
from solm.cli.budget_check import checked_budget
from solm.cli.options import (
    DECIDERS,
    DEFAULT_MODEL,
    BackendOption,
    BudgetOption,
    DeciderOption,
    DtypeOption,
    JsonOption,
    KvCacheOption,
    ModelOption,
    PrecisionOption,
    RevisionOption,
    SeedOption,
    SpaceOption,
    TimingsOption,
    TrustOption,
)
from solm.cli.sampling_options import (
    FrequencyOption,
    MinPOption,
    PresenceOption,
    RepetitionOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    sampling,
)
from solm.cli.streams import reason
from solm.core.errors import BudgetError, DataError

if TYPE_CHECKING:
    from solm.runtime.language_model import LanguageModel
    from solm.runtime.reply import Reply

_NOTICEABLE = 0.02
"""Share of the tokens read above what was asked for."""


def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    model: ModelOption = DEFAULT_MODEL,
    policy: DeciderOption = None,
    budget: BudgetOption = None,
    space: SpaceOption = None,
    system: Annotated[str | None, typer.Option(help="System message, for models with a chat template.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply.", min=1)] = 128,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    min_p: MinPOption = None,
    repetition_penalty: RepetitionOption = None,
    presence_penalty: PresenceOption = None,
    frequency_penalty: FrequencyOption = None,
    seed: SeedOption = 0,
    dtype: DtypeOption = "auto",
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    kv_cache_dtype: KvCacheOption = None,
    timings: TimingsOption = None,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the reply here, as JSON.")] = None,
    json: JsonOption = False,
) -> None:
    """Generate text under a compute budget. In a terminal, tokens are coloured by what they cost.

    \b
    Examples:
      solm generate --policy builtin:smollm2-135m-cpu --budget 0.9 "Why is the sky blue?"
      solm generate --budget mlp=0.7 "Why is the sky blue?"
      solm generate --policy builtin:smollm2-135m-cpu --budget keep=0.7 --json "Hello" | jq .realised
    """
    from solm.backends.tokenizer import model_tokenizer
    from solm.cli import spent
    from solm.cli.output import print_json, repacking, say
    from solm.core.budget import Budget, BudgetRequest
    from solm.core.errors import check_unicode
    from solm.core.files import write_json
    from solm.runtime.language_model import check_length
    from solm.runtime.load import load
    from solm.runtime.prompts import encode

    try:
        text = sys.stdin.read() if prompt == "-" else prompt
    except OSError as error:
        raise DataError(f"PROMPT: cannot read standard input: {reason(error)}") from error
    if not text.strip():
        raise DataError("PROMPT: the prompt is empty")
    check_unicode(text, "PROMPT: the prompt")
    options = sampling(
        temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty, frequency_penalty=frequency_penalty,
    )  # fmt: skip
    checks.out_file(out)
    checks.backend(backend, precision, kv_cache_dtype, dtype)
    grid = checks.space_of(space)
    config = checks.model_config(model, revision, trust_remote_code, backend=backend)
    checks.room(config, max_new_tokens, "--max-new-tokens")
    tokenizer = checks.tokenizer(model, revision, trust_remote_code, system)
    if tokenizer is None:  # a GGUF file's, which is read before its weights
        with checks.option("--model"):
            tokenizer = model_tokenizer(model, trust_remote_code, revision)
    with checks.option("PROMPT"):
        ids = encode(tokenizer, text, system)
        check_length(ids.shape[1], max_new_tokens, config.context)
    seen = ids.shape[1] + max_new_tokens // 2
    trained = None if policy in DECIDERS else checks.trained_policy(policy, config, grid)
    decider = policy if policy in DECIDERS else "policy" if trained else "dense" if budget is None else "static"
    known = checks.step_times(timings, model, backend)
    with checks.option("--budget"):
        if decider == "dense" and BudgetRequest.parse(budget).value not in (1.0, Budget()):
            raise BudgetError(f"{budget} needs another --policy than dense, which spends everything")
    request = checked_budget(budget, config, trained, grid, known, context=seen)
    if policy is None and budget is not None:
        checks.mention_policy(config)
    with repacking() as progress:
        lm = load(
            model, trained, tokenizer=tokenizer, dtype=dtype, backend=backend, precision=precision,
            kv_cache_dtype=kv_cache_dtype, timings=timings, revision=revision, trust_remote_code=trust_remote_code,
            progress=progress,
        )  # fmt: skip
    chosen = lm.policy(decider, grid)
    with checks.option("--budget"):
        lm.budget(request, seen, chosen)
    stream = lm.stream(ids, budget=request, policy=chosen, max_new_tokens=max_new_tokens, seed=seed, **options)
    moments: list[float] = []
    coloured, special = sys.stdout.isatty() and not json, set(lm.tokenizer.all_special_ids)
    try:
        for token in stream:
            moments.append(time.perf_counter())
            if not json and token.id not in special:  # not the end's
                print(paint(token.text, token.cost) if coloured else token.text, end="", flush=True)
    except KeyboardInterrupt:
        if not json:
            print(flush=True)
        raise
    finally:
        reply = stream.reply
        if out is not None and moments:
            write_json(out, _told(lm, budget, reply))
    if json:
        print_json(_told(lm, budget, reply))
        return
    print()
    for line in spent.lines(lm, budget, reply, seen):
        say(line)
    if reply.compute.realised["attention"] > reply.compute.requested["attention"] + _NOTICEABLE:
        first, last = lm.sparsity.sinks, lm.sparsity.window
        say(f"           attention always reads the first {first} and the last {last} tokens, more than asked for")
    say(f"speed:     {spent.speed(moments)}, {lm.backend.name}")
    told = spent.saved(lm, reply, moments, ids.shape[1])
    if told is not None:
        say(f"saved:     {told}")


def _told(lm: "LanguageModel", budget: str | None, reply: "Reply") -> dict[str, Any]:
    """The reply for machines, with the budget as it was typed and what its times were measured on."""
    measured = None if lm.timings is None else lm.timings.measured_on
    return reply.as_dict() | {"budget": budget, "measured_on": measured}


def paint(text: str, cost: float) -> str:
    """`text` in a terminal colour from green (cheap) to red (dense)."""
    hot = min(1.0, max(0.0, (cost - 0.6) / 0.4))
    return f"\x1b[38;2;{int(60 + 170 * hot)};{int(190 - 110 * hot)};80m{text}\x1b[0m"
