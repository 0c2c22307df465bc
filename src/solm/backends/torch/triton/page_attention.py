"""Attention of one position per row over the pages its plan reads: pages are scored, chosen and read, without a mask.

Pages are chosen, with the same rounding, as `solm.backends.torch.pages` does in plain torch. The host reads nothing
back: the list of pages has room for all of them, and kernels read how many there are.
"""

# Kernel arguments are pointers and numbers, which Triton types by itself.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

import torch
import triton
import triton.language as tl

from solm.backends.torch.cache import KeyValues
from solm.backends.torch.plan import Layout, Plan
from solm.backends.torch.triton import interpreted

_SCORED = 32  # pages that one program scores
_STAGES = 2  # tiles of keys and values that a program has under way
_SHARED = 96 << 10  # bytes of shared memory that a program may take on any GPU since 2020
_PROGRAMS = 256  # wanted at least, by splitting rows' pages: about two for each multiprocessor of a large GPU
_WORTH_A_SPLIT = 256  # tokens; below, adding up the parts costs more than it saves

# Counts that change as a context grows, for whose divisibility no kernel should be compiled again.
_COUNTS = ["known", "pages"]


@triton.jit
def _rounded(x, DTYPE: tl.constexpr):
    """float32 x at the precision of DTYPE, nearest even. Triton's interpreter cuts bits off instead."""
    if DTYPE.is_bf16():
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = bits.to(tl.float32, bitcast=True)
    else:
        x = x.to(DTYPE).to(tl.float32)
    return x


@triton.jit(do_not_specialize=_COUNTS)
def _score_pages(
    query, lowest, highest, scores, of_row, of_head, heads, known, pages,
    GROUP: tl.constexpr, SIZE: tl.constexpr, GROUP_BLOCK: tl.constexpr, SIZE_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """scores [N, H, pages] of the first `known` pages, whose bounds are known."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    line = row * heads + head
    group, size = tl.arange(0, GROUP_BLOCK)[:, None], tl.arange(0, SIZE_BLOCK)[None, :]
    dtype = query.dtype.element_ty
    q = tl.load(query + (line * GROUP + group) * SIZE + size, mask=(group < GROUP) & (size < SIZE), other=0.0)
    q = q.to(tl.float32)
    # Rounded where plain torch rounds, so that the same pages win.
    positive = _rounded(tl.sum(tl.maximum(q, 0.0), 0), dtype)[None, :]
    negative = _rounded(tl.sum(tl.minimum(q, 0.0), 0), dtype)[None, :]
    index = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    here = (index < known)[:, None] & (size < SIZE)
    at = row * of_row + head * of_head + index[:, None] * SIZE + size
    low = tl.load(lowest + at, mask=here, other=0.0).to(tl.float32)
    high = tl.load(highest + at, mask=here, other=0.0).to(tl.float32)
    above = _rounded(tl.sum(high * positive, 1), dtype)
    below = _rounded(tl.sum(low * negative, 1), dtype)
    tl.store(scores + line * pages + index, _rounded(above + below, dtype), mask=index < known)


@triton.jit(do_not_specialize=["pages", "budget_h"])
def _choose_pages(
    scores, positions, window_start, budget, chosen, counts, heads, budget_h, pages,
    SINKS: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """chosen [N, H, pages] int32: the pages to read, ascending, of which counts [N, H] int32 are filled."""
    row = tl.program_id(0).to(tl.int64)
    line = row * heads + tl.program_id(1)
    index = tl.arange(0, BLOCK)
    exists = (index < pages) & (index <= tl.load(positions + row) // PAGE)
    start = tl.load(window_start + row) // PAGE
    candidate = exists & (index >= SINKS) & (index < start)
    always = exists & ~candidate

    # The count-th largest score, bit by bit: floats order like the integers of their bits once negative ones are
    # turned over, and -0 is 0.
    wanted = tl.load(budget + tl.program_id(1) * budget_h + row)
    score = tl.load(scores + line * pages + index, mask=candidate, other=0.0)
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    key = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)
    least = tl.full((), -(1 << 31), tl.int64)
    for place in range(32):
        trial = least + (tl.full((), 1, tl.int64) << (31 - place))
        least = tl.where(tl.sum((candidate & (key >= trial)).to(tl.int32), 0) >= wanted, trial, least)
    above = candidate & (key > least)
    equal = candidate & (key == least)
    missing = wanted - tl.sum(above.to(tl.int32), 0)
    read = always | above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= missing))

    place = tl.cumsum(read.to(tl.int32), 0) - 1
    tl.store(chosen + line * pages + place, index, mask=read)
    tl.store(counts + line, tl.sum(read.to(tl.int32), 0))


@triton.jit(do_not_specialize=["pages", "splits"])
def _read_pages(
    query, keys, values, chosen, counts, positions, output, logs,
    key_row, key_head, value_row, value_head, heads, pages, splits, softcap,
    GROUP: tl.constexpr, SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, PAGE: tl.constexpr,
    GROUP_BLOCK: tl.constexpr, SIZE_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
    SOFTCAP: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """One of `splits` parts of a row's pages: output [N, H, splits, G, Dv] and the logarithms [N, H, splits, G] of what
    the softmax of each part sums to, both float32."""
    row, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    line = row * heads + head
    group, size, value_size = tl.arange(0, GROUP_BLOCK), tl.arange(0, SIZE_BLOCK), tl.arange(0, VALUE_BLOCK)
    of_group, of_key, of_value = group < GROUP, (size < SIZE)[None, :], (value_size < VALUE_SIZE)[None, :]
    q = tl.load(
        query + (line * GROUP + group[:, None]) * SIZE + size[None, :], mask=of_group[:, None] & of_key, other=0.0
    )

    count = tl.load(counts + line)
    share = (count + splits - 1) // splits
    first, last = split * share * PAGE, tl.minimum((split + 1) * share, count) * PAGE
    newest = tl.load(positions + row)
    highest = tl.full((GROUP_BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP_BLOCK,), tl.float32)
    result = tl.zeros((GROUP_BLOCK, VALUE_BLOCK), tl.float32)
    for begin in range(first, last, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        page = tl.load(chosen + line * pages + place // PAGE, mask=place < last, other=0)
        slot = page * PAGE + place % PAGE
        seen = (place < last) & (slot <= newest)
        key_at = row * key_row + head * key_head + slot[:, None] * SIZE + size[None, :]
        value_at = row * value_row + head * value_head + slot[:, None] * VALUE_SIZE + value_size[None, :]
        key = tl.load(keys + key_at, mask=seen[:, None] & of_key, other=0.0)
        value = tl.load(values + value_at, mask=seen[:, None] & of_value, other=0.0)
        scores = tl.dot(q.to(OPERAND), tl.trans(key).to(OPERAND), input_precision="ieee")
        if SOFTCAP:
            scores = (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0) * softcap
        scores = tl.where(seen[None, :], scores, float("-inf"))
        peak = tl.maximum(highest, tl.max(scores, 1))
        # Where nothing was visible so far, the peak is -inf and must not be subtracted.
        shift = tl.where(peak == float("-inf"), 0.0, peak)
        weights = tl.exp(scores - shift[:, None])
        fade = tl.exp(highest - shift)
        total = total * fade + tl.sum(weights, 1)
        weights = _rounded(weights, value.dtype).to(OPERAND)
        result = result * fade[:, None] + tl.dot(weights, value.to(OPERAND), input_precision="ieee")
        highest = peak
    result = result / tl.where(total == 0.0, 1.0, total)[:, None]
    at = (line * splits + split) * GROUP + group
    tl.store(logs + at, highest + tl.log(total), mask=of_group)
    tl.store(output + at[:, None] * VALUE_SIZE + value_size[None, :], result, mask=of_group[:, None] & of_value)


def tokens_at_once(channels: int, element_size: int) -> int:
    """Tokens whose keys and values, of `channels` in total, make a tile that leaves _SHARED enough for the products."""
    return min(64, max(16, _SHARED // (3 if element_size == 2 else 6) // (channels * element_size)))


def choose_pages(query: torch.Tensor, held: KeyValues, layout: Layout, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """The pages that every row and KV head reads under `plan`.

    Args:
        query: [N, Hq, D], contiguous.
        held: with bounds; contiguous in the last two dimensions.

    Returns:
        [N, H, pages] int32, ascending page numbers, and [N, H] int32, how many of them are filled.
    """
    rows, query_heads, size = query.shape
    heads, page = held.keys.shape[1], plan.sparsity.page_size
    assert held.bounds is not None, "the cache keeps page bounds whenever a plan is sparse"
    known, pages = held.bounds.shape[3], -(-layout.length // page)
    _check_layout(size, *held.bounds)
    scores = query.new_empty(rows, heads, pages, dtype=torch.float32)
    group = query_heads // heads
    if known:
        _score_pages[(rows, heads, triton.cdiv(known, _SCORED))](
            query, *held.bounds, scores, *held.bounds[0].stride()[:2], heads, known, pages,
            GROUP=group, SIZE=size, GROUP_BLOCK=triton.next_power_of_2(group),
            SIZE_BLOCK=triton.next_power_of_2(size), BLOCK=_SCORED,
        )  # fmt: skip
    chosen = torch.empty_like(scores, dtype=torch.int32)
    counts = chosen.new_empty(rows, heads)
    budget = plan.pages.contiguous()
    _choose_pages[(rows, heads)](
        scores, layout.positions.contiguous(), plan.window_start.contiguous(), budget, chosen, counts, heads,
        rows if len(budget) > 1 else 0, pages,
        SINKS=-(-plan.sparsity.sinks // page), PAGE=page, BLOCK=triton.next_power_of_2(pages),
    )  # fmt: skip
    return chosen, counts


def attend_pages(
    query: torch.Tensor,
    held: KeyValues,
    layout: Layout,
    plan: Plan,
    scaling: float,
    softcap: float | None = None,
) -> torch.Tensor:
    """As `attend` of the torch backend, of query [N, Hq, 1, D], for plans that `reads_pages` takes: [N, Hq, 1, Dv].

    Of keys and values only the chosen pages are read, once for all query heads of a KV head. A row's pages are split
    over as many programs as it takes to fill a GPU; a second step weights the parts by what their softmax sums to.
    """
    rows, query_heads, _, size = query.shape
    heads, value_size, page = held.keys.shape[1], held.values.shape[3], plan.sparsity.page_size
    group = query_heads // heads
    scaled = (query * scaling).reshape(rows, query_heads, size)
    chosen, counts = choose_pages(scaled, held, layout, plan)
    _check_layout(size, held.keys)
    _check_layout(value_size, held.values)
    pages = chosen.shape[2]
    most = triton.cdiv(pages * page, _WORTH_A_SPLIT)
    splits = min(most, triton.cdiv(_PROGRAMS, rows * heads))
    output = query.new_empty(rows, heads, splits, group, value_size, dtype=torch.float32)
    logs = output.new_empty(rows, heads, splits, group)
    # Triton's interpreter multiplies the bit patterns of bfloat16 operands (triton-lang/triton#11584); widened they
    # give the same products.
    operand = tl.float32 if interpreted() else getattr(tl, str(query.dtype).removeprefix("torch."))
    size_block, value_block = (max(16, triton.next_power_of_2(width)) for width in (size, value_size))
    _read_pages[(rows, heads, splits)](
        scaled, held.keys, held.values, chosen, counts, layout.positions.contiguous(), output, logs,
        *held.keys.stride()[:2], *held.values.stride()[:2], heads, pages, splits, softcap or 1.0,
        GROUP=group, SIZE=size, VALUE_SIZE=value_size, PAGE=page,
        GROUP_BLOCK=max(16, triton.next_power_of_2(group)), SIZE_BLOCK=size_block, VALUE_BLOCK=value_block,
        BLOCK=tokens_at_once(size_block + value_block, query.element_size()),
        SOFTCAP=softcap is not None, OPERAND=operand, num_stages=_STAGES,
    )  # fmt: skip
    whole = output[:, :, 0] if splits == 1 else (output * torch.softmax(logs, 2)[..., None]).sum(2)
    return whole.to(query.dtype).reshape(rows, query_heads, 1, value_size)


def _check_layout(size: int, *buffers: torch.Tensor) -> None:
    """Kernels take the strides of rows and heads, and expect tokens [T, size] contiguous within."""
    for buffer in buffers:
        assert buffer.stride()[2:] == (size, 1) or buffer.shape[2] < 2, f"strides {buffer.stride()} of {size} channels"
