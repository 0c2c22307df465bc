"""Decode on a GPU, dense and sparse, milliseconds: attention over pages, products of kept channels, whole steps.

    python evidence/bench/gpu.py --contexts 4096,32768 --rows 1,8 --json

Attention and products have the shapes of a Llama of 8B, in bfloat16, with random numbers: their time depends only on
how much is read. Medians of `triton.testing.do_bench`, which empties the L2 cache between runs. Steps are those of
--model, Python included, beside those of the stock transformers model: medians over interleaved rounds.
"""

import statistics
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

import solm
from evidence.bench.common import STEPS, constant_step, draw_text, finish, interleaved, numbers, parser
from evidence.bench.timed_engines import SETTINGS, TRANSFORMERS
from solm.backends.torch import triton as kernels
from solm.backends.torch.attention import attend
from solm.backends.torch.cache import KeyValues, page_bounds
from solm.backends.torch.load import load_base
from solm.backends.torch.plan import Layout, Plan, make_plan, on_device
from solm.backends.torch.select import keep_channels
from solm.core.cost import ModelShapes
from solm.core.sparsity import SparsityConfig

SHAPES = ModelShapes(
    layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128, vocabulary=128256, gated=True
)
KEEP = (0.5, 0.2, 0.1)

Timer = Callable[[Callable[[], object]], float]


def attention(rows: int, context: int, device: str, timer: Timer) -> dict[str, float]:
    """One layer's attention of `rows` sequences that see `context` keys each."""
    size, page = SHAPES.head_dim, SparsityConfig().page_size
    keys, values = (
        torch.randn(rows, SHAPES.kv_heads, 1, context, size, device=device, dtype=torch.bfloat16) for _ in range(2)
    )
    whole = keys[:, :, :, : context // page * page]
    own = KeyValues(keys, values, page_bounds(whole, page))
    query = torch.randn(rows, SHAPES.heads, 1, size, device=device, dtype=torch.bfloat16)
    positions = torch.full((rows, 1), context - 1, device=device)
    layout = Layout(rows, 1, positions, torch.zeros_like(positions[:, 0]), 0, context)

    def plan(keep: float) -> Plan:
        actions = np.tile((keep, 1.0, 16.0), (rows, 1, 1))
        made = make_plan(actions, positions.cpu().numpy() + 1, SparsityConfig(), SHAPES)
        return on_device(made.at(0), torch.device(device))

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


def main() -> None:
    options = parser(__doc__, "rounds")
    options.add_argument("--contexts", default="4096,32768")
    options.add_argument("--rows", default="1,8")
    asked = options.parse_args()
    if not torch.cuda.is_available():
        print("evidence/bench/gpu.py needs a CUDA device; torch sees none", file=sys.stderr)
        sys.exit(2)
    import triton

    contexts, rows = ([int(part) for part in numbers(text)] for text in (asked.contexts, asked.rows))

    def timer(run: Callable[[], object]) -> float:
        return float(triton.testing.do_bench(run, return_mode="median"))

    lm = solm.load(asked.model, dtype="bfloat16", backend="torch")
    stock, _ = load_base(asked.model, "bfloat16")
    limit = lm.model.config.max_position_embeddings
    results = {
        "attention": {f"{n} rows, {seen}": attention(n, seen, "cuda", timer) for n in rows for seen in contexts},
        "product": {f"{n} rows": product(n, "cuda", timer) for n in range(1, kernels.MOST_ROWS + 1)},
        "steps": {f"{seen}": steps(lm, stock, seen, asked.rounds) for seen in contexts if seen + 1024 < limit},
        "gpu": torch.cuda.get_device_name(), "triton": triton.__version__,
    }  # fmt: skip
    lines = [
        f"{part}, {shape}: {name:24} {value:8.4f} ms"
        for part in ("attention", "product", "steps")
        for shape, values in results[part].items()
        for name, value in values.items()
    ]
    finish("gpu", asked, results, lines)


def steps(lm: solm.LanguageModel, stock: PreTrainedModel, context: int, rounds: int) -> dict[str, float]:
    """Medians of steps of one row after `context` tokens."""
    ids = draw_text(lm, 1, context + 1)
    parent = lm.session(capacity=context)
    parent.prefill(ids[:, :context])
    calls: dict[str, Callable[[], object]] = {
        name: partial(constant_step(parent.fork(1, STEPS * (rounds + 1)), keep), ids[:, context])
        for name, keep in SETTINGS.items()
    }
    calls[TRANSFORMERS] = stock_step(stock, ids.to(stock.device))

    def waiting(step: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            step()
            torch.cuda.synchronize()

        return run

    taken = interleaved({name: waiting(step) for name, step in calls.items()}, rounds)
    return {name: statistics.median(values) for name, values in taken.items()}


def stock_step(model: PreTrainedModel, ids: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A step of the stock model: it reads the last token of ids [1, C + 1] after the others and gives logits [1, 1, V].
    A further call reads that token once more, as steps of a session do."""
    with torch.inference_mode():
        cache = model(ids[:, :-1], logits_to_keep=1).cache

    def step() -> torch.Tensor:
        with torch.inference_mode():
            return model(ids[:, -1:], cache=cache).logits

    return step


if __name__ == "__main__":
    main()
