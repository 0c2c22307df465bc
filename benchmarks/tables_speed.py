"""The tables about time: what a step, a reply or a question takes."""

from collections.abc import Callable, Sequence
from math import log

import published as of
import published_speed as timed
from cells import NONE, change, interval, markdown, perplexity, signed, table
from published import Difference
from published_speed import BEST
from solm.core.curve import COLUMNS
from solm.policies.artifact import TrainedPolicy


@table
def headline() -> str:
    """What the engine, the precision and the dial each contribute, everything else equal."""
    at = (64, 1024, 4096)

    def row(name: str, quality: str, before: Callable[[int], float], after: Callable[[int], float]) -> list[str]:
        return [*name.split(": "), quality, *(change(before(context), after(context)) for context in at), NONE]

    def dial(limit: float) -> list[str]:
        cells = [NONE] * 4
        for place, context in ((1, 1024), (3, 8064)):
            after = timed.fastest(context, log(1 + limit)).milliseconds["policy"]
            cells[place] = change(timed.dial_dense(context), after, not timed.dial_timed_dense(context))
        words = f"perplexity at most +{100 * limit:.0f}\u00a0%"
        return ["**Dial**", "dense → policy, 4-bit weights, int8 KV cache", words, *cells]

    return markdown(
        ("Part", "What changes", "Quality", *(f"{context:,} tokens" for context in (*at, 8064))),
        [
            row(
                "**Engine**: transformers → solm, bfloat16",
                "the same weights",
                timed.transformers_step,
                lambda context: timed.step("bfloat16", "dense", context),
            ),
            row(
                "**Engine**: llama.cpp Q8_0 → solm int8, every logit",
                "8-bit weights on both sides",
                lambda context: timed.llama_cpp_step("Q8_0", context),
                lambda context: timed.step("int8", "dense, every logit", context),
            ),
            row(
                "**Engine**: llama.cpp Q4_1 → solm, 4 bits, every logit",
                "the same 4-bit weights",
                lambda context: timed.llama_cpp_step("Q4_1", context),
                lambda context: timed.step("int4", "dense, every logit", context),
            ),
            row(
                "**Precision**: bfloat16 → 4-bit weights, int8 KV cache",
                "the layers' weights were published in 4 bits: none is rounded",
                lambda context: timed.step("bfloat16", "dense", context),
                lambda context: timed.step(BEST, "dense", context),
            ),
            dial(0.05),
            dial(0.15),
        ],
        words=3,
    )


@table
def larger() -> str:
    """Larger models beside llama.cpp on the same file."""
    return _larger(((0, "second start to first token, s", 1), (1, "peak memory, GiB", 2)))


@table
def larger_steps() -> str:
    """The same without starts, and after fewer contexts."""
    return _larger(((1, "peak memory, GiB", 2),), (1024, 4096, 16384))


def _larger(last: Sequence[tuple[int, str, int]], contexts: Sequence[int] | None = None) -> str:
    """last: the last rows, a place in `timed.larger_start`, its words and digits. contexts: None for all."""
    settings = {"MLP 0.6": "mlp 0.6", "pages 0.2, MLP 0.6": "pages 0.2, mlp 0.6"}
    none = [NONE] * len(settings)
    rows = []
    for size, name in timed.LARGER.items():
        for context in (one for one in timed.larger_contexts(size) if contexts is None or one in contexts):
            theirs, ours = timed.larger_step(size, "llama.cpp", context), timed.larger_step(size, "solm", context)
            dialled = (timed.larger_step(size, "solm", context, setting) for setting in settings.values())
            cells = [f"{ours:.1f} ({theirs / ours:.2f}×)", *(f"{time:.1f} ({ours / time:.2f}×)" for time in dialled)]
            rows.append([name, f"step after {context:,}, ms", f"{theirs:.1f}", *cells])
        losses = [loss for setting in settings.values() if (loss := timed.larger_loss(size, setting))]
        if losses:
            rows.append([name, "loss after 1,024, nats per token", NONE, "0", *map(interval, losses)])
        theirs, ours = (timed.larger_prompt(size, engine, 1024) for engine in ("llama.cpp", "solm"))
        rows.append([name, "prompt of 1,024, tokens/s", f"{theirs:.0f}", f"{ours:,.0f} ({ours / theirs:.2f}×)", *none])
        starts = [timed.larger_start(size, engine) for engine in ("llama.cpp", "solm")]
        for place, what, digits in last:
            rows.append([name, what, *(f"{start[place]:.{digits}f}" for start in starts), *none])
    head = ("Model, Q4_K_M file", "", "llama.cpp", "solm, dense", *(f"solm, {name}" for name in settings))
    return markdown(head, rows, words=2)


@table
def fidelity() -> str:
    """What the rounding of the cpu backend costs, beside the same weights in float32."""
    rows = []
    for name, found in timed.fidelity().items():
        for precision, gap in found["precisions"].items():
            mean, error = gap["mean_difference"], gap["standard_error"]
            rows.append(
                [name, precision, f"{signed(mean, 4)} ± {1.96 * error:.4f}", f"{gap['mean_absolute_difference']:.3f}"]
            )
    return markdown(
        ("Model", "Precision", "log-probability of a token, nats", "mean absolute difference"), rows, words=2
    )


@table
def clock() -> str:
    """Milliseconds of a decode step."""

    def row(name: str, read: Callable[[int], float]) -> list[str]:
        return [name, *(f"{read(context):.1f}" for context in timed.contexts())]

    peers = [row("transformers, bfloat16", timed.transformers_step)]
    peers += [
        row(f"llama.cpp {kind}", lambda c, k=kind: timed.llama_cpp_step(k, c))
        for kind in ("BF16", "Q8_0", "Q4_1", "Q4_0")
    ]
    shown = [
        (kind, setting)
        for kind in ("float32", "bfloat16", "int8", "int8+int8", "int4", BEST)
        for setting in ("dense", "dense, every logit", "pages 0.2, mlp 0.6")
        if kind not in ("float32", "bfloat16") or setting == "dense"
    ]
    ours = [
        row(
            f"solm {kind.replace('+int8', ', int8 KV cache')}, {setting.replace('mlp', 'MLP')}",
            lambda c, k=kind, s=setting: timed.step(k, s, c),
        )
        for kind, setting in shown
    ]
    return markdown(("Milliseconds per step", *(f"{context:,} tokens" for context in timed.contexts())), peers + ours)


@table
def budget() -> str:
    """What a setting costs and saves, by context."""
    found = {context: {(s.pages, s.mlp): s for s in timed.dial(context)} for context in timed.DIAL_FILES}
    settings = [
        (0.4, 1.0), (0.4, 0.8), (0.4, 0.7), (0.2, 1.0), (0.2, 0.8), (0.2, 0.7), (0.2, 0.6), (0.1, 0.8), (0.1, 0.6)
    ]  # fmt: skip
    dense = {context: timed.dial_dense(context) for context in found}
    marks = {context: "" if timed.dial_timed_dense(context) else "≈" for context in found}
    rows = [["1", *(c for context in found for c in ("1", f"{marks[context]}{dense[context]:.1f} (1.00×)", "0 %"))]]
    for key in settings:
        cells = []
        for context, known in found.items():
            if key in known:
                time = known[key].milliseconds["policy"]
                cells += [
                    f"{timed.share_of_bytes(known[key], context):.2f}",
                    f"{time:.1f} ({dense[context] / time:.2f}×)",
                    perplexity(known[key].loss["policy"].value),
                ]
            else:
                cells += [NONE] * 3
        # Shares that are read hardly depend on the context.
        pages, mlp = next(known[key].realised for known in reversed(found.values()) if key in known)
        rows.append([f"attention={pages:.1f},mlp={mlp:.2g}", *cells])
    head = [cell for context in found for cell in (f"{context:,} tokens: bytes", "ms", "perplexity")]
    return markdown(("`--budget`", *head), rows)


@table
def curve_smallest() -> str:
    """What budgets of one number take and lose, by the curve of the policy that ships for the cpu backend."""
    curve = TrainedPolicy.from_pretrained("builtin:smollm2-135m-cpu").curve
    assert curve is not None
    return markdown(("after tokens", "`--budget`", *COLUMNS[2:]), [list(row) for row in curve.rows()], words=0)


@table
def equal_time() -> str:
    """At 1,024 tokens: loss and milliseconds of the same shares."""
    rows = [
        [
            f"pages {s.pages:g}, MLP {s.mlp:g}", *(f"{s.loss[arm].value:.3f}" for arm in timed.DIAL_ARMS),
            " / ".join(f"{s.milliseconds[arm]:.2f}" for arm in timed.DIAL_ARMS),
            interval(s.policy_minus["allocated minus uniform"]), interval(s.policy_minus["allocated"]),
        ]
        for s in timed.dial(1024)
    ]  # fmt: skip
    return markdown(("Shares", *timed.DIAL_ARMS, "milliseconds", "allocated − uniform", "policy − allocated"), rows)


@table
def serving() -> str:
    rows = []
    for label, key in of.SERVERS.items():
        cells = []
        for clients in ("1", "4"):
            found = of.servers()[key][clients]
            cells += [
                f"{found['tokens_per_second']:.0f}",
                f"{found['first_p50_ms']:,.0f}",
                f"{found['tpot_p50_ms']:.1f}",
            ]
        rows.append([label, *cells])
    head = [
        f"{n}: {what}" for n in ("1 client", "4 clients") for what in ("tokens/s", "first token, ms", "ms per token")
    ]
    return markdown(("Server", *head), rows)


@table
def shedding() -> str:
    found = of.shedding()
    if found is None:
        return ""

    def cell(value: float | None, digits: int) -> str:
        return NONE if value is None else f"{value:.{digits}f}"

    rows = [
        [f"{factor} × capacity, {arm}", f"{r['offered']}", f"{r['refused']}", f"{r['goodput_per_second']:.2f}",
         f"{r['served_per_second']:.2f}", cell(r["first_p95_s"], 1), cell(r["tpot_p95_ms"], 0), cell(r["net_keep"], 2)]
        for factor in next(iter(found["arms"].values()))
        for arm, runs in found["arms"].items()
        for r in (runs[factor],)
    ]  # fmt: skip
    head = (
        "requests",
        "refused",
        "good replies/s",
        "replies/s",
        "first token, s, p95",
        "ms per token, p95",
        "net keep",
    )
    title = f"Capacity {found['capacity_per_second']:.2f} replies/s, objective {found['objective_ms']:.0f} ms"
    return markdown((title, *head), rows)


@table
def policy_cost() -> str:
    rows = [
        [f"{p['precision']}, {p['space']}", f"{p['dense']:.2f}", f"{p['added']:.3f}", f"{100 * p['overhead']:.1f} %"]
        for p in of.policy_cost()
    ]
    return markdown(("Precision, action space", "dense step, ms", "decisions, ms", "share"), rows)


@table
def training_speed() -> str:
    names = {
        "random schedules": "random schedules, as the default method trains",
        "policy gradient, 2 texts": "policy gradient, 2 texts × 16 schedules × 16 steps",
        "policy gradient, 8 texts": "policy gradient, 8 texts × 16 schedules × 16 steps",
    }
    found = [of.rollouts(dtype) for dtype in ("bfloat16", "float32")]
    rows = [[label, *(f"{speeds[name]:.0f}" for speeds in found)] for name, label in names.items()]
    return markdown(("Token-steps per second", "bfloat16", "float32"), rows)


@table
def tasks_speed() -> str:
    rows = []
    for key, label in (("5-shot", "five examples"), ("0-shot", "none")):
        found = of.tasks_speed()[key]["questions_per_second"]
        rows.append([label, *(f"{found[arm]:.2f}" for arm in ("hf", "dense", "policy"))])
    return markdown(("Questions per second, MMLU", "lm-eval's hf model", "solm dense", "solm policy"), rows)


@table
def nested() -> str:
    rows = [
        [f"pages {s['pages']:g}, MLP {s['mlp']:g}", f"{100 * (s['bits'] - 0.25) / 0.75:.0f} %",
         f"{s['allocated']['loss']['value']:.3f}", f"{s['allocated']['speedup']:.2f}×"]
        for s in of.nested() if s["mlp"] > 0.75
    ]  # fmt: skip
    return markdown(("Shares", "steps that read both halves", "loss, nats", "speed, dense int8 = 1"), rows)


@table
def kv_cache() -> str:
    rows = [[f"{p['pages']:g}", interval(Difference.of(p["int8_minus_auto"]))] for p in of.kv_cache()]
    return markdown(("KV pages read", "int8 − bfloat16, nats per token"), rows)
