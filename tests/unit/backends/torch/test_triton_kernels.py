"""The Triton kernels against plain torch, on the CPU under Triton's interpreter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.models import keep_of, tiny_model, tokens
from solm.backends.torch import triton as kernels
from solm.backends.torch.attention import Scoring, attend
from solm.backends.torch.backend import TorchBackend
from solm.backends.torch.cache import KeyValues, page_bounds
from solm.backends.torch.pages import select_pages
from solm.backends.torch.plan import Layout, make_plan
from solm.backends.torch.select import keep_channels
from solm.core.cost import ModelShapes
from solm.core.sparsity import Allocation, SparsityConfig

pytest.importorskip("triton")
with pytest.MonkeyPatch.context() as patched:
    patched.setenv("TRITON_INTERPRET", "1")
    from solm.backends.torch.triton import channel_product as products
    from solm.backends.torch.triton import page_attention

SHAPES = ModelShapes(layers=2, hidden=64, intermediate=96, heads=4, kv_heads=2, head_dim=16, vocabulary=259, gated=True)
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


class Case:
    """A decode step of len(lengths) rows: forks of a sequence that share `split` tokens, or sequences of their own."""

    def __init__(self, kv_heads, group, size, split, lengths, keep, dtype, page=16, seed=0, integers=False):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            if integers:
                return torch.randint(-2, 3, shape, generator=generator).to(dtype)
            return torch.randn(*shape, generator=generator).to(dtype)

        rows = len(lengths)
        self.sequences, self.forks = (1, rows) if split else (rows, 1)
        seen, base = torch.tensor(lengths), torch.full((rows,), split)
        held = max(lengths) - split
        keep = torch.tensor(keep, dtype=torch.float64).expand(rows)[:, None]
        self.action = torch.stack([keep, torch.ones_like(keep), torch.full_like(keep, 16)], -1).numpy()
        self.sparsity = SparsityConfig(page_size=page, window=64, sinks=4)
        self.plan = make_plan(self.action, seen[:, None].numpy(), self.sparsity, SHAPES).at(0)
        self.layout = Layout(self.sequences, self.forks, seen[:, None] - 1, base, split, held)
        # A cache's buffers have room beyond what is held.
        keys, values = (draw(self.sequences, kv_heads, self.forks, held + 5, size)[:, :, :, :held] for _ in range(2))
        self.own = KeyValues(keys, values, page_bounds(keys[:, :, :, : held // page * page], page))
        self.prefix = None
        if split:
            keys, values = (draw(1, kv_heads, 1, split, size) for _ in range(2))
            self.prefix = KeyValues(keys, values, page_bounds(keys, page))
        self.query, self.scaling = draw(rows, kv_heads * group, 1, size), size**-0.5

    def by_head(self, layer):
        """From now on each KV head has a budget of its own, as an allocation divides it in `layer`."""
        knots = torch.arange(21) / 20
        attention = tuple(tuple((knots**power).tolist()) for power in (0.5, 2, 1, 3))
        mlp = (tuple(knots.tolist()),) * 2
        sparsity = self.sparsity.under(Allocation(attention=attention, mlp=mlp, hidden=mlp))
        self.plan = make_plan(self.action, self.layout.positions.numpy() + 1, sparsity, SHAPES).at(layer)

    def attend(self, softcap=None):
        return attend(self.query, self.prefix, self.own, self.layout, self.plan, Scoring(self.scaling, softcap))

    def read(self):
        """A mask [S, H, K, P + T] of the prefix's and own tokens that plain torch reads."""
        kv_heads = self.own.keys.shape[1]
        folded = (self.query * self.scaling).reshape(self.sequences, self.forks, kv_heads, -1, 1, self.query.shape[-1])
        mask = select_pages(folded.transpose(1, 2), self.prefix, self.own, self.layout, self.plan)
        visible = self.layout.visible(None)[:, :, :, None]
        return (mask & visible)[:, :, :, 0, 0].expand(self.sequences, kv_heads, self.forks, -1)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def plainly(monkeypatch):
    """Runs a function without the kernels."""

    def run(function, *arguments):
        with monkeypatch.context() as patched:
            patched.setattr(kernels, "usable", lambda x: False)
            return function(*arguments)

    return run


CASES = {
    "one row, 3 heads a group": (3, 3, 64, 0, [401], 0.4),
    "no group": (4, 1, 64, 0, [530], 0.3),
    "4 heads of 128": (2, 4, 128, 0, [300], 0.5),
    "8 heads a group, rows of several lengths": (2, 8, 64, 0, [70, 513, 260], 0.4),
    "page boundary": (2, 3, 64, 0, [320, 321, 319], 0.5),
    "nothing beyond sinks and window": (2, 4, 64, 0, [400], 0.05),
    "too short to skip anything": (1, 3, 64, 0, [80, 81], 0.1),
    "forks of a prefix": (2, 3, 64, 192, [260, 300, 193], 0.4),
    "forks, everything but one page": (1, 4, 128, 256, [400, 402], 0.97),
    "odd head": (2, 4, 80, 0, [290], 0.5),
    "a keep rate per row": (1, 2, 64, 0, [300, 300, 300], [0.1, 0.5, 1.0]),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_attention_equals_plain_torch_and_reads_nothing_else(name, dtype, plainly):
    case = Case(*CASES[name], dtype)
    expected = plainly(case.attend)
    # What is not chosen must not even be looked at: a NaN there would spread.
    lengths = [case.layout.prefix_length, case.layout.own_length]
    for part, read in zip((case.prefix, case.own), case.read().split(lengths, -1), strict=True):
        if part is not None:
            by_any = read.any(2, keepdim=True) if part is case.prefix else read
            for buffer in (part.keys, part.values):
                buffer.masked_fill_(~by_any[..., None], torch.nan)
    got = case.attend()
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("page", [8, 24, 64])
def test_attention_takes_any_page_size_and_a_softcap(page, plainly):
    case = Case(1, 3, 64, 0, [410], 0.5, torch.float32, page=page)
    torch.testing.assert_close(case.attend(5.0), plainly(case.attend, 5.0), atol=2e-6, rtol=1e-5)
    assert (case.attend(5.0) - case.attend()).abs().max() > 1e-3


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 999), st.lists(st.integers(70, 420), min_size=1, max_size=3), st.floats(0.05, 1),
    st.sampled_from([torch.float32, torch.bfloat16]), st.sampled_from([0, 64]), st.sampled_from([1, 3]),
    st.sampled_from([None, 0, 1]),
)  # fmt: skip
def test_chosen_pages_are_plain_torchs_ties_included(seed, lengths, keep, dtype, split, group, by_head):
    # Sums of small integers are exact in any order, and full of ties.
    case = Case(2, group, 64, split, lengths, keep, dtype, seed=seed, integers=True)
    if by_head is not None:
        case.by_head(by_head)
    case.scaling = 1.0
    query = case.query.reshape(len(lengths), -1, 64)
    chosen, counts = page_attention.choose_pages(query, case.prefix, case.own, case.layout, case.plan)
    read = case.read()
    for row in range(len(lengths)):
        sequence, fork = divmod(row, case.forks)
        for head in range(2):
            expected = sorted(set((read[sequence, head, fork].nonzero()[:, 0] // 16).tolist()))
            assert chosen[row, head, : counts[row, head]].tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kept", [0, 1, 77, 200])
def test_product_reads_the_weights_of_kept_channels_alone(kept, dtype):
    generator = torch.Generator().manual_seed(kept)
    rows, channels, outputs = 1 + kept % 4, 200, 300
    x = torch.randn(rows, 1, channels, generator=generator).to(dtype)
    x = keep_channels(x, torch.tensor([[kept]]))
    weight, bias = torch.randn(channels, outputs, generator=generator).to(dtype), torch.randn(outputs).to(dtype)
    expected = x.double() @ weight.double()
    dropped = (x == 0).all(0)[0]
    assert int((~dropped).sum()) >= kept
    weight[dropped] = torch.nan
    for added in (None, bias):
        got = products.channel_product(x, weight, added)
        assert got.shape == (rows, 1, outputs)
        whole = expected if added is None else expected + added.double()
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(got.double(), whole, atol=tolerance, rtol=tolerance)


CALLS = {"joint": (0.3, 0.5, 6), "attention": (0.3, 1.0, 16), "mlp": (1.0, 0.5, 16)}


def decode(model, sparsity, keep, lengths, forks):
    """Logits of two steps of forks of padded prompts."""
    control = TorchBackend(model)
    ids = tokens(len(lengths), max(lengths))
    parent = control.session(sparsity)
    parent.prefill(ids, torch.tensor(lengths))
    session = parent.fork(forks) if forks > 1 else parent
    following = tokens(session.rows, 2, seed=1)
    logits = [session.step(following[:, step], keep_of(keep, session.rows, 1)[:, 0]).logits[:, 0] for step in range(2)]
    control.detach()
    assert not any("forward" in vars(module) for module in model.modules())
    return torch.stack(logits)


@pytest.mark.parametrize(
    ("family", "action", "lengths", "forks", "sparsity"),
    [
        pytest.param("llama", "joint", [150], 1, {}, marks=pytest.mark.slow),  # part of the next one
        ("llama", "joint", [101, 77], 2, {}),
        ("qwen3", "attention", [120], 1, {}),
        ("llama", "mlp", [100, 60], 1, {"hidden_power": 2}),
        ("gemma2", "joint", [140], 1, {}),
        ("gpt2", "mlp", [100], 1, {}),
        ("phi3", "joint", [130], 1, {"mlp_site": "input"}),
    ],
)
def test_models_decode_as_in_plain_torch(family, action, lengths, forks, sparsity, plainly, monkeypatch):
    model = tiny_model(family, torch.float32)
    sparsity = SparsityConfig(page_size=8, window=16, **sparsity)
    expected = plainly(decode, model, sparsity, CALLS[action], lengths, forks)
    used = {"attend_pages": 0, "channel_product": 0}
    for module, name in ((page_attention, "attend_pages"), (products, "channel_product")):

        def counted(*arguments, name=name, function=getattr(module, name)):
            used[name] += 1
            return function(*arguments)

        monkeypatch.setattr(module, name, counted)
    got = decode(model, sparsity, CALLS[action], lengths, forks)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert (used["attend_pages"] > 0) == (action != "mlp")
    assert (used["channel_product"] > 0) == (action != "attention")
