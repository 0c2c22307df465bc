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
_COUNTS = ["prefix_pages", "own_pages", "pages"]


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
    query, prefix_low, prefix_high, own_low, own_high, scores,
    prefix_s, prefix_h, own_s, own_h, own_k, forks, heads, prefix_pages, own_pages, pages,
    GROUP: tl.constexpr, SIZE: tl.constexpr, GROUP_BLOCK: tl.constexpr, SIZE_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr, HAS_PREFIX: tl.constexpr,
):  # fmt: skip
    """scores [N, H, pages] of the prefix's pages and the first `own_pages` of the row's own."""
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
    own = index - prefix_pages
    here = ((own >= 0) & (own < own_pages))[:, None] & (size < SIZE)
    at = (row // forks) * own_s + head * own_h + (row % forks) * own_k + own[:, None] * SIZE + size
    low = tl.load(own_low + at, mask=here, other=0.0).to(tl.float32)
    high = tl.load(own_high + at, mask=here, other=0.0).to(tl.float32)
    if HAS_PREFIX:
        here = (own < 0)[:, None] & (size < SIZE)
        at = (row // forks) * prefix_s + head * prefix_h + index[:, None] * SIZE + size
        low += tl.load(prefix_low + at, mask=here, other=0.0).to(tl.float32)
        high += tl.load(prefix_high + at, mask=here, other=0.0).to(tl.float32)
    above = _rounded(tl.sum(high * positive, 1), dtype)
    below = _rounded(tl.sum(low * negative, 1), dtype)
    tl.store(scores + line * pages + index, _rounded(above + below, dtype), mask=own < own_pages)


@triton.jit(do_not_specialize=[*_COUNTS, "budget_h"])
def _choose_pages(
    scores, positions, base, window_start, budget, chosen, counts, heads, budget_h, prefix_pages, pages,
    SINKS: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """chosen [N, H, pages] int32: the pages to read, ascending, of which counts [N, H] int32 are filled."""
    row = tl.program_id(0).to(tl.int64)
    line = row * heads + tl.program_id(1)
    index = tl.arange(0, BLOCK)
    base_page = tl.load(base + row) // PAGE
    in_prefix = index < prefix_pages
    number = tl.where(in_prefix, index, index - prefix_pages + base_page)
    exists = tl.where(in_prefix, index < base_page, (index < pages) & (number <= tl.load(positions + row) // PAGE))
    start = tl.load(window_start + row) // PAGE
    always = exists & ((number < SINKS) | (number >= start))
    candidate = exists & (number >= SINKS) & (number < start)

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


@triton.jit(do_not_specialize=["prefix_pages", "pages", "splits"])
def _read_pages(
    query, prefix_keys, prefix_values, own_keys, own_values, chosen, counts, positions, base, output, logs,
    prefix_key_s, prefix_key_h, prefix_value_s, prefix_value_h,
    own_key_s, own_key_h, own_key_k, own_value_s, own_value_h, own_value_k,
    forks, heads, prefix_pages, pages, splits, softcap,
    GROUP: tl.constexpr, SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, PAGE: tl.constexpr,
    GROUP_BLOCK: tl.constexpr, SIZE_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
    HAS_PREFIX: tl.constexpr, SOFTCAP: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """One of `splits` parts of a row's pages: output [N, H, splits, G, Dv] and the logarithms [N, H, splits, G] of what
    the softmax of each part sums to, both float32."""
    row, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    line = row * heads + head
    sequence, fork = row // forks, row % forks
    group, size, value_size = tl.arange(0, GROUP_BLOCK), tl.arange(0, SIZE_BLOCK), tl.arange(0, VALUE_BLOCK)
    of_group, of_key, of_value = group < GROUP, (size < SIZE)[None, :], (value_size < VALUE_SIZE)[None, :]
    q = tl.load(
        query + (line * GROUP + group[:, None]) * SIZE + size[None, :], mask=of_group[:, None] & of_key, other=0.0
    )

    count = tl.load(counts + line)
    share = (count + splits - 1) // splits
    first, last = split * share * PAGE, tl.minimum((split + 1) * share, count) * PAGE
    newest = tl.load(positions + row) - tl.load(base + row)
    highest = tl.full((GROUP_BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP_BLOCK,), tl.float32)
    result = tl.zeros((GROUP_BLOCK, VALUE_BLOCK), tl.float32)
    for begin in range(first, last, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        page = tl.load(chosen + line * pages + place // PAGE, mask=place < last, other=0)
        in_prefix = (place < last) & (page < prefix_pages)
        slot = (page - prefix_pages) * PAGE + place % PAGE
        in_own = (place < last) & (page >= prefix_pages) & (slot <= newest)
        key_at = sequence * own_key_s + head * own_key_h + fork * own_key_k
        key_at += slot[:, None] * SIZE + size[None, :]
        value_at = sequence * own_value_s + head * own_value_h + fork * own_value_k
        value_at += slot[:, None] * VALUE_SIZE + value_size[None, :]
        keys = tl.load(own_keys + key_at, mask=in_own[:, None] & of_key, other=0.0)
        values = tl.load(own_values + value_at, mask=in_own[:, None] & of_value, other=0.0)
        if HAS_PREFIX:
            token = page * PAGE + place % PAGE
            key_at = sequence * prefix_key_s + head * prefix_key_h + token[:, None] * SIZE + size[None, :]
            value_at = sequence * prefix_value_s + head * prefix_value_h
            value_at += token[:, None] * VALUE_SIZE + value_size[None, :]
            keys += tl.load(prefix_keys + key_at, mask=in_prefix[:, None] & of_key, other=0.0)
            values += tl.load(prefix_values + value_at, mask=in_prefix[:, None] & of_value, other=0.0)
        scores = tl.dot(q.to(OPERAND), tl.trans(keys).to(OPERAND), input_precision="ieee")
        if SOFTCAP:
            scores = (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0) * softcap
        scores = tl.where((in_prefix | in_own)[None, :], scores, float("-inf"))
        peak = tl.maximum(highest, tl.max(scores, 1))
        # Where nothing was visible so far, the peak is -inf and must not be subtracted.
        shift = tl.where(peak == float("-inf"), 0.0, peak)
        weights = tl.exp(scores - shift[:, None])
        fade = tl.exp(highest - shift)
        total = total * fade + tl.sum(weights, 1)
        weights = _rounded(weights, values.dtype).to(OPERAND)
        result = result * fade[:, None] + tl.dot(weights, values.to(OPERAND), input_precision="ieee")
        highest = peak
    result = result / tl.where(total == 0.0, 1.0, total)[:, None]
    at = (line * splits + split) * GROUP + group
    tl.store(logs + at, highest + tl.log(total), mask=of_group)
    tl.store(output + at[:, None] * VALUE_SIZE + value_size[None, :], result, mask=of_group[:, None] & of_value)


def tokens_at_once(channels: int, element_size: int) -> int:
    """Tokens whose keys and values, of `channels` in total, make a tile that leaves _SHARED enough for the products."""
    return min(64, max(16, _SHARED // (3 if element_size == 2 else 6) // (channels * element_size)))


def choose_pages(
    query: torch.Tensor, prefix: KeyValues | None, own: KeyValues, layout: Layout, plan: Plan
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pages that every row and KV head reads under `plan`.

    Args:
        query: [N, Hq, D], contiguous.
        prefix, own: with bounds; contiguous in their last two dimensions.

    Returns:
        [N, H, pages] int32, ascending page numbers of the prefix and, counted on from its last, of the own tokens; and
        [N, H] int32, how many of them are filled.
    """
    rows, query_heads, size = query.shape
    heads, page = own.keys.shape[1], plan.sparsity.page_size
    assert own.bounds is not None, "the cache keeps page bounds whenever a plan is sparse"
    prefix_bounds = None if prefix is None else prefix.bounds
    prefix_pages = 0 if prefix_bounds is None else prefix_bounds.shape[4]
    own_pages = own.bounds.shape[4]
    pages = prefix_pages - (-layout.own_length // page)
    first = own.bounds if prefix_bounds is None else prefix_bounds
    _check_layout(size, *first, *own.bounds)
    scores = query.new_empty(rows, heads, pages, dtype=torch.float32)
    group = query_heads // heads
    if prefix_pages + own_pages:
        _score_pages[(rows, heads, triton.cdiv(prefix_pages + own_pages, _SCORED))](
            query, *first, *own.bounds, scores,
            *first[0].stride()[:2], *own.bounds[0].stride()[:3], layout.forks, heads, prefix_pages, own_pages, pages,
            GROUP=group, SIZE=size, GROUP_BLOCK=triton.next_power_of_2(group),
            SIZE_BLOCK=triton.next_power_of_2(size), BLOCK=_SCORED, HAS_PREFIX=prefix_bounds is not None,
        )  # fmt: skip
    chosen = torch.empty_like(scores, dtype=torch.int32)
    counts = chosen.new_empty(rows, heads)
    budget = plan.pages.contiguous()
    _choose_pages[(rows, heads)](
        scores, layout.positions.contiguous(), layout.base.contiguous(), plan.window_start.contiguous(),
        budget, chosen, counts, heads, rows if len(budget) > 1 else 0, prefix_pages, pages,
        SINKS=-(-plan.sparsity.sinks // page), PAGE=page, BLOCK=triton.next_power_of_2(pages),
    )  # fmt: skip
    return chosen, counts


def attend_pages(
    query: torch.Tensor,
    prefix: KeyValues | None,
    own: KeyValues,
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
    heads, value_size, page = own.keys.shape[1], own.values.shape[4], plan.sparsity.page_size
    group = query_heads // heads
    scaled = (query * scaling).reshape(rows, query_heads, size)
    chosen, counts = choose_pages(scaled, prefix, own, layout, plan)
    first = own if prefix is None else prefix
    _check_layout(size, first.keys, own.keys)
    _check_layout(value_size, first.values, own.values)
    pages = chosen.shape[2]
    prefix_pages = 0 if prefix is None else prefix.keys.shape[3] // page
    most = triton.cdiv(pages * page, _WORTH_A_SPLIT)
    splits = min(most, triton.cdiv(_PROGRAMS, rows * heads))
    output = query.new_empty(rows, heads, splits, group, value_size, dtype=torch.float32)
    logs = output.new_empty(rows, heads, splits, group)
    # Triton's interpreter multiplies the bit patterns of bfloat16 operands (triton-lang/triton#11584); widened they
    # give the same products.
    operand = tl.float32 if interpreted() else getattr(tl, str(query.dtype).removeprefix("torch."))
    size_block, value_block = (max(16, triton.next_power_of_2(width)) for width in (size, value_size))
    _read_pages[(rows, heads, splits)](
        scaled, first.keys, first.values, own.keys, own.values, chosen, counts, layout.positions.contiguous(),
        layout.base.contiguous(), output, logs, *first.keys.stride()[:2], *first.values.stride()[:2],
        *own.keys.stride()[:3], *own.values.stride()[:3], layout.forks, heads, prefix_pages, pages, splits,
        softcap or 1.0,
        GROUP=group, SIZE=size, VALUE_SIZE=value_size, PAGE=page,
        GROUP_BLOCK=max(16, triton.next_power_of_2(group)), SIZE_BLOCK=size_block, VALUE_BLOCK=value_block,
        BLOCK=tokens_at_once(size_block + value_block, query.element_size()), HAS_PREFIX=prefix is not None,
        SOFTCAP=softcap is not None, OPERAND=operand, num_stages=_STAGES,
    )  # fmt: skip
    whole = output[:, :, 0] if splits == 1 else (output * torch.softmax(logs, 2)[..., None]).sum(2)
    return whole.to(query.dtype).reshape(rows, query_heads, 1, value_size)


def _check_layout(size: int, *buffers: torch.Tensor) -> None:
    """Kernels take the strides of sequences, heads and forks, and expect tokens [T, size] contiguous within."""
    for buffer in buffers:
        assert buffer.stride()[3:] == (size, 1) or buffer.shape[3] < 2, f"strides {buffer.stride()} of {size} channels"
