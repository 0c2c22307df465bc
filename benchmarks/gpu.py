"""Decode on a GPU, dense and sparse, milliseconds: attention over pages, products of kept channels, whole steps.

    python benchmarks/gpu.py --contexts 4096,32768 --rows 1,8 --json

Attention and products have the shapes of a Llama of 8B, bfloat16, random numbers: what they take depends on how much is
read alone. Medians of `triton.testing.do_bench`, which empties the L2 cache between runs. Steps are SmolLM2-135M's, as
`generate` calls them, Python included: medians over interleaved rounds.
"""

import json
import sys
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

import solm
from solm.backends.torch import triton as kernels
from solm.backends.torch.attention import KeyValues, attend
from solm.backends.torch.layout import Layout
from solm.backends.torch.pages import PageBounds
from solm.backends.torch.plan import Plan, make_plan
from solm.backends.torch.select import keep_channels
from solm.core.cost import ModelShapes
from solm.core.sparsity import SparsityConfig
from timing import MODEL, arguments, draw_text, machine, median

SHAPES = ModelShapes(
    layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128, vocabulary=128256, gated=True
)
KEEP = (0.5, 0.2, 0.1)
DIAL = {
    "dense": (1.0, 1.0, 16), "mlp .6": (1.0, 0.6, 16), "pages .2": (0.2, 1.0, 16), "pages .2, mlp .6": (0.2, 0.6, 16),
}  # fmt: skip
STEPS = 24

Timer = Callable[[Callable[[], object]], float]


def attention(rows: int, context: int, device: str, timer: Timer) -> dict[str, float]:
    """One layer's attention of `rows` sequences that see `context` keys each."""
    size, page = SHAPES.head_dim, SparsityConfig().page_size
    keys, values = (
        torch.randn(rows, SHAPES.kv_heads, 1, context, size, device=device, dtype=torch.bfloat16) for _ in range(2)
    )
    whole = keys[:, :, :, : context // page * page]
    own = KeyValues(keys, values, PageBounds.of(whole, page))
    query = torch.randn(rows, SHAPES.heads, 1, size, device=device, dtype=torch.bfloat16)
    positions = torch.full((rows, 1), context - 1, device=device)
    layout = Layout(rows, 1, positions, torch.zeros_like(positions[:, 0]), 0, context, uniform_base=True)

    def plan(keep: float) -> Plan:
        action = torch.tensor([keep, 1.0, 16.0], dtype=torch.float64).expand(rows, 1, 3)
        return make_plan(action, positions.cpu() + 1, SparsityConfig(), SHAPES).to(torch.device(device))

    found = {
        "torch's own, dense": timer(
            lambda: F.scaled_dot_product_attention(query, keys[:, :, 0], values[:, :, 0], enable_gqa=True)
        ),
    }
    for keep in KEEP:
        decided = plan(keep)
        assert kernels.reads_pages(query, decided)
        found[f"pages {keep}"] = timer(lambda p=decided: attend(query, None, own, layout, p, size**-0.5))  # type: ignore[misc]
    return found


def product(rows: int, device: str, timer: Timer) -> dict[str, float]:
    """One product of the MLP's size, selection not included."""
    from solm.backends.torch.triton.channel_product import channel_product

    weight = torch.randn(SHAPES.hidden, SHAPES.intermediate, device=device, dtype=torch.bfloat16)
    x = torch.randn(rows, 1, SHAPES.hidden, device=device, dtype=torch.bfloat16)
    stock = weight.t().contiguous()
    found = {"torch's own, dense": timer(lambda: F.linear(x, stock))}
    for keep in (0.8, 0.6, 0.4):
        kept = keep_channels(x, torch.full((rows, 1, 1), round(keep * SHAPES.hidden), device=device))
        found[f"keep {keep}"] = timer(lambda kept=kept: channel_product(kept, weight))  # type: ignore[misc]
    return found


def steps(lm: solm.LanguageModel, context: int, rounds: int) -> dict[str, float]:
    """Steps of one row after `context` tokens."""
    ids = draw_text(lm, 1, context + 1)
    parent = lm.session(capacity=context)
    parent.prefill(ids[:, :context])
    forks = {name: parent.fork(1, STEPS * (rounds + 1)) for name in DIAL}
    taken: dict[str, list[float]] = {name: [] for name in DIAL}
    for _ in range(rounds + 1):
        for name, action in DIAL.items():
            keep = torch.tensor([action], dtype=torch.float64)
            times = []
            for _ in range(STEPS):
                begun = time.perf_counter()
                int(forks[name].step(ids[:, context], keep).argmax())  # waits for the device
                times.append(1e3 * (time.perf_counter() - begun))
            taken[name].append(median(times))
    return {name: median(values[1:]) for name, values in taken.items()}


def main() -> None:
    options = arguments(
        __doc__,
        lambda parser: parser.add_argument("--contexts", default="4096,32768"),
        lambda parser: parser.add_argument("--rows", default="1,8"),
    )
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py needs a CUDA device; torch sees none", file=sys.stderr)
        sys.exit(2)
    import triton

    contexts, rows = ([int(part) for part in text.split(",")] for text in (options.contexts, options.rows))

    def timer(run: Callable[[], object]) -> float:
        return triton.testing.do_bench(run, return_mode="median")

    lm = solm.load(MODEL, dtype="bfloat16")
    limit = lm.model.config.max_position_embeddings
    told = {
        "attention": {f"{n} rows, {seen}": attention(n, seen, "cuda", timer) for n in rows for seen in contexts},
        "product": {f"{n} rows": product(n, "cuda", timer) for n in range(1, kernels.MOST_ROWS + 1)},
        "steps": {context: steps(lm, context, options.rounds) for context in contexts if context + 1024 < limit},
        "gpu": torch.cuda.get_device_name(), "triton": triton.__version__, "machine": machine(),
    }  # fmt: skip
    if options.json:
        print(json.dumps(told))
        return
    for part in ("attention", "product", "steps"):
        for shape, values in told[part].items():
            print(f"{part}, {shape}")
            for name, value in values.items():
                print(f"  {name:24} {value:8.4f} ms")


if __name__ == "__main__":
    main()
