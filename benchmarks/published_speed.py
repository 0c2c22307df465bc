"""The published results of time: larger models, steps in milliseconds, and the dial with its quality too."""

from dataclasses import dataclass
from typing import Any

from published import RESULTS, Difference, read
from solm.core.cost import ModelShapes, step_cost
from solm.core.sparsity import SparsityConfig

BEST = "int4+int8"
"""The precision in which the dial was measured: 4-bit weights (then called int4) and an int8 KV cache."""
DIAL_ARMS = ("uniform", "allocated", "policy")

# Larger models: one file each

LARGER = {"0.5B": "Qwen2.5-Coder-0.5B", "1.5B": "Qwen2.5-Coder-1.5B"}


def larger(size: str) -> Any:
    """What benchmarks/engine.py found for a model of `LARGER`: ours, and `peers` by name."""
    return read(f"engine-{size.lower()}")


def _larger(size: str, engine: str, context: int) -> list[dict[str, Any]]:
    """What an engine did after a context; llama.cpp's two attention implementations are two."""
    names = ("llama.cpp", "llama.cpp fused") if engine == "llama.cpp" else (engine,)
    every = [larger(size) if engine == "solm" else larger(size)["peers"].get(name, {}) for name in names]
    return [one["contexts"][str(context)] for one in every if "contexts" in one]


def larger_step(size: str, engine: str, context: int, setting: str = "dense", rows: int = 1) -> float:
    """Milliseconds of a step. engine: solm, or a peer, llama.cpp with the faster of its two attentions."""
    return min(one["step_ms"][setting][str(rows)]["median"] for one in _larger(size, engine, context))


def larger_prompt(size: str, engine: str, context: int) -> float:
    """Prompt tokens per second, likewise the faster of two."""
    return max(one["prefill_tokens_per_second"]["median"] for one in _larger(size, engine, context))


def larger_start(size: str, engine: str) -> tuple[float, float]:
    """Seconds from a second start to the first token, and the peak of resident memory in GiB."""
    found = larger(size) if engine == "solm" else larger(size)["peers"][engine]
    return found["start_seconds"]["second"]["median"], found["peak_gib"]["second"]


def larger_contexts(size: str) -> list[int]:
    return sorted(map(int, larger(size)["contexts"]))


def larger_loss(size: str, setting: str) -> Difference | None:
    """What benchmarks/settings.py found that a setting loses after 1,024 tokens, where it ran."""
    if not (RESULTS / f"settings-{size.lower()}.json").exists():
        return None
    return Difference.of(read(f"settings-{size.lower()}")["settings"][setting])


def fidelity() -> dict[str, Any]:
    """By model, what benchmarks/fidelity.py found."""
    return {"SmolLM2-135M": read("fidelity-135m"), LARGER["0.5B"]: read("fidelity-0.5b")}


# Milliseconds of a decode step


def contexts() -> list[int]:
    return sorted({point["context"] for point in read("engine")["points"]})


def timed(engine: str, precision: str, context: int, settings: tuple[str, ...], kv_cache: str = "auto") -> float:
    """Milliseconds of a step: the fastest of `settings`."""
    wanted = {"engine": engine, "precision": precision, "context": context, "kv_cache": kv_cache, "rows": 1}
    return min(
        point["milliseconds"]["median"]
        for point in read("engine")["points"]
        if wanted.items() <= point.items() and point["setting"] in settings
    )


def step(kind: str, setting: str, context: int) -> float:
    """Milliseconds of a step of the cpu backend. kind: such as int8, or int8+int8 with a KV cache in int8."""
    precision, _, kv_cache = kind.partition("+")
    return timed("cpu", precision, context, (setting,), kv_cache or "auto")


def transformers_step(context: int) -> float:
    return timed("transformers", "bfloat16", context, ("dense",))


def llama_cpp_step(kind: str, context: int) -> float:
    """The faster of llama.cpp's two attention implementations."""
    return timed("llama.cpp", kind, context, ("dense", "dense, fused attention"))


# The dial: quality and milliseconds of the same settings


@dataclass(frozen=True)
class Setting:
    """One setting of the dial: levels of KV pages and MLP channels, the shares of both that the policy's steps read, as
    `--budget attention=...,mlp=...` counts them; per arm milliseconds and loss in nats.
    """

    pages: float
    mlp: float
    realised: tuple[float, float]
    milliseconds: dict[str, float]
    loss: dict[str, Difference]
    policy_minus: dict[str, Difference]


DIAL_FILES = {1024: "dial-1024", 8064: "dial-8064"}
DIAL_STEPS = 128
SMOLLM2 = ModelShapes(
    layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3, head_dim=64, vocabulary=49152, gated=True,
    weight_bits=5, head_bits=8.5, cache_bits=8.5,
)  # fmt: skip
"""With the bits of `BEST`: 4-bit numbers with a step and a lowest value of 16 bits per 32, 8-bit ones with a scale."""


def share_of_bytes(setting: Setting, context: int) -> float:
    """What the setting's steps read, as a share of the dense step's bytes: computed from the model's sizes.

    The policy's own weights are left out: they are less than a thousandth.
    """
    shares = (*setting.realised, 1.0)
    return step_cost(shares, context + DIAL_STEPS // 2, SMOLLM2, SparsityConfig.preset("cpu"), "bytes")


def dial_texts(context: int) -> int:
    return read(DIAL_FILES[context])["contexts"][str(context)]["texts"]


def dial(context: int) -> list[Setting]:
    """The measured settings, in `BEST` precision."""
    found = []
    for item in read(DIAL_FILES[context])["contexts"][str(context)]["settings"]:
        if item["kind"] == BEST:
            found.append(
                Setting(
                    item["pages"],
                    item["mlp"],
                    (item["policy"]["realised"][0], item["policy"]["realised"][1]),
                    {arm: item[arm]["milliseconds"] for arm in DIAL_ARMS},
                    {arm: Difference.of(item[arm]["loss"]) for arm in DIAL_ARMS},
                    {
                        "allocated": Difference.of(item["policy_minus_allocated"]),
                        "allocated minus uniform": Difference.of(item["allocated_minus_uniform"]),
                    },
                )
            )
    return found


def dial_timed_dense(context: int) -> bool:
    """Whether the run of the dial timed a dense step of `BEST` precision."""
    return any(setting.pages == setting.mlp == 1 for setting in dial(context))


def dial_dense(context: int) -> float:
    """Milliseconds of a dense step of `BEST` precision in the run of the dial.

    Where that run timed no such step: its dense int8 step, times the ratio of the two in `engine`.
    """
    for setting in dial(context):
        if setting.pages == setting.mlp == 1:
            return setting.milliseconds["uniform"]
    int8 = read(DIAL_FILES[context])["contexts"][str(context)]["dense_milliseconds"]
    return int8 * step(BEST, "dense", context) / step("int8", "dense", context)


def fastest(context: int, loss: float, arm: str = "policy") -> Setting:
    """The fastest setting that loses at most `loss` nats per token."""
    within = [setting for setting in dial(context) if setting.loss[arm].value <= loss]
    return min(within, key=lambda setting: setting.milliseconds[arm])
