"""Checks of the compiled engine at its edges, without a session, for any build of it.

The tests run them for several processors. Run as a script, with compiler flags as its arguments, they run once for one
build: that is how they run under sanitizers, whose runtime must be loaded before Python is.
"""

import sys
from collections.abc import Callable

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType as TensorType

from helpers.engine import KV_CACHES, engine_of
from helpers.gguf_files import ALL_TYPES, repacked, tensor_of, values_of
from helpers.head import FORMS, HeadEngine, random_head, rounded_states
from helpers.models import tiny_model, tokens
from helpers.weights import GRID_SIZES, K_SIZES, QuantisedModel
from solm.backends.budgets import ROW_STATE
from solm.backends.cpu.call import Cache, Computed, Decider, EngineCall
from solm.backends.cpu.engine import Engine
from solm.backends.cpu.files.layout import INT8, NESTED, Form, Target
from solm.backends.cpu.files.repack import dequantise
from solm.backends.cpu.files.sources import QUANTISED, LoadedModel
from solm.backends.cpu.library import library
from solm.backends.machine import usable_cores
from solm.core.errors import DataError
from solm.core.sparsity import SparsityConfig

SPARSITY = SparsityConfig(window=16)
ACTIONS = [(1.0, 1.0, 16), (0.3, 1.0, 16), (1.0, 0.5, 16), (1.0, 1.0, 5), (0.25, 0.4, 6), (0.5, 0.6, 4)]


class Rows:
    """Rows of one engine with all that belongs to them."""

    def __init__(self, engine: Engine, rows: int = 1, sparsity: SparsityConfig = SPARSITY, capacity: int = 640):
        self.engine, self.sparsity, self.capacity = engine, sparsity, capacity
        self.caches = tuple(Cache(engine, capacity) for _ in range(rows))
        self.lengths, self.states = np.zeros(rows, np.int64), np.zeros(rows, ROW_STATE)
        self.call = EngineCall(engine, sparsity)

    def run(self, tokens: torch.Tensor, keep=None, **how) -> Computed:
        """Tokens [N, Q] under keep [N, Q, 3], or one action for all."""
        if isinstance(keep, tuple):
            keep = torch.tensor(keep, dtype=torch.float64).expand(*tokens.shape, 3)
        found = self.call.run(self.caches, tokens, self.lengths, self.states, keep, **how)
        found.logits = torch.from_numpy(found.logits)  # for the tests' comparisons
        if how.get("last") is None:
            self.lengths = self.lengths + how.get("counts", tokens.shape[1])
        return found

    def fork(self, forks: int = 1, capacity: int = 640) -> "Rows":
        child = Rows.__new__(Rows)
        child.__dict__.update(self.__dict__)
        child.caches = tuple(
            Cache(self.engine, capacity, cache, int(length))
            for cache, length in zip(self.caches, self.lengths, strict=True)
            for _ in range(forks)
        )
        child.lengths, child.states = self.lengths.repeat(forks), self.states.repeat(forks)
        child.call = EngineCall(self.engine, self.sparsity)
        return child

    @classmethod
    def beside(cls, alone: "list[Rows]") -> "Rows":
        """Copies of single rows in one batch."""
        found = cls(alone[0].engine, len(alone), alone[0].sparsity)
        found.caches = tuple(one.fork().caches[0] for one in alone)
        found.lengths = np.concatenate([one.lengths for one in alone])
        return found


def of_many_lengths(engine: Engine, count: int, sparsity: SparsityConfig) -> list[Rows]:
    """Single rows that have read 20, 33, 46, ... tokens."""
    alone = [Rows(engine, 1, sparsity) for _ in range(count)]
    for row, one in enumerate(alone):
        one.run(tokens(1, 20 + 13 * row, seed=row))
    return alone


def decider(layer: int, hidden: int = 64, **changes) -> Decider:
    """A random policy over 3 x 2 x 2 levels."""
    draw = torch.Generator().manual_seed(abs(layer))
    levels = [np.array(axis) for axis in ((0.2, 0.5, 1.0), (0.5, 1.0), (5.0, 16.0))]
    costs = [np.array(axis) for axis in ((0.3, 0.1, 0.0), (0.2, 0.0), (0.1, 0.0))]
    network = {
        "read.weight": torch.randn(8, hidden + 3, generator=draw), "read.bias": torch.randn(8, generator=draw),
        "head.weight": torch.randn(3, 8, generator=draw), "head.bias": torch.zeros(3), "scale": torch.ones(3),
        "trust": torch.ones(3),
    }  # fmt: skip
    options = {
        "layer": layer, "network": network, "levels": levels, "own_cost": costs,
        "fixed_cost": [0 * cost for cost in costs], "prices": np.linspace(2, 0, 5),
        "curves": [np.linspace(axis[0] / axis[-1], 1, 5) for axis in levels],
    }  # fmt: skip
    return Decider(**{**options, **changes})


def under(rows: Rows, policy: Decider, target: float = 0.7, horizon: int = 100) -> Rows:
    rows.states["decider"], rows.states["target"], rows.states["horizon"] = policy.address, target, horizon
    return rows


def dense_equals_the_model(built) -> None:
    """At page boundaries, one token and several at a time; also of layers that see 40 tokens."""
    for family in ("llama", "gemma2", "gemma3_text", "qwen2_moe", "qwen3_moe", "gpt_oss", "phi", "gpt_neox"):
        model = tiny_model(family, torch.float32)
        engine = engine_of(model, SPARSITY, "float32", library=built)
        for context in (1, 15, 16, 17, 33, 300):
            ids = tokens(1, context + 40, seed=context)
            rows = Rows(engine)
            found = [rows.run(part).logits for part in ids.split([context, 1, 1, 7, 31], 1)]
            with torch.no_grad():
                torch.testing.assert_close(torch.cat(found, 1), model(ids).logits, atol=2e-3, rtol=0)


def prompts_equal_steps(built) -> None:
    """What is read at once against dense steps; to the last bit whatever else is read with it and however it is cut."""
    off = {
        "float32": 1e-5,
        "bfloat16": 1e-3,
        "int8": 0.02,
        "packed": 0.02,
        "nested": 0.02,
        "int8 kv": 0.04,
        "int8 kv4": 0.2,
    }
    for name, most in off.items():
        model = tiny_model("qwen3", torch.float32, intermediate_size=352, **GRID_SIZES)
        precision, _, kv = name.partition(" ")
        engine = engine_of(model, SPARSITY, precision, kv_cache_dtype=KV_CACHES[kv], library=built)
        ids = tokens(2, 310)
        stepped, cut, whole = Rows(engine, 2), Rows(engine, 2), Rows(engine, 2)
        expected = [stepped.run(part, (1.0, 1.0, 16)).stream for part in ids.split([45, 133, 132], 1)]
        found = torch.cat([torch.from_numpy(cut.run(part).stream) for part in ids.split([45, 133, 132], 1)], 1)
        expected = torch.cat([torch.from_numpy(stream) for stream in expected], 1)
        assert float((found - expected).norm() / expected.norm()) < most, name
        assert np.array_equal(whole.run(ids).stream, found.numpy()), name
        alone = Rows(engine)
        assert np.array_equal(alone.run(ids[1:]).stream[0], found[1].numpy()), name
        after = [rows.run(tokens(2, 3, seed=2), (0.3, 0.6, 8)).logits for rows in (cut, whole)]
        assert torch.equal(*after), name


def sparse_equals_the_native_build(built) -> None:
    """But for tokens of which selections differ, where values tie to the last bit."""
    model = tiny_model("qwen3", torch.float32)
    rows = [Rows(engine_of(model, SPARSITY, "float32", library=some), 2) for some in (library(), built)]
    for some in rows:
        some.run(tokens(2, 100))
    for action in ACTIONS:
        found = [some.fork().run(tokens(2, 40, seed=5), action) for some in rows]
        close = (found[0].logits - found[1].logits).abs().amax(-1) < 1e-3
        assert close.float().mean() > 0.97, action
        assert np.allclose(found[0].realised, found[1].realised, rtol=0, atol=1e-12), action


def steps_do_not_depend_on_their_neighbours(built) -> None:
    """To the last bit: rows of other lengths and actions share the pass through the weights, known tokens too. A row
    gives what it gives beside dense ones, and with integers, or one of two, what its steps give alone."""
    dense = tiny_model("llama", torch.float32, intermediate_size=352, **GRID_SIZES)
    mixture = tiny_model("mixtral", torch.float32, intermediate_size=352, **GRID_SIZES)
    names = ("float32", "bfloat16", "int8", "packed", "nested", "packed kv", "int8 kv4")
    for model, precision in [*((dense, name) for name in names), *((mixture, name) for name in names[:5])]:
        precision, _, kv = precision.partition(" ")
        changes = {"bits_site": "weights" if precision == "nested" else "input"}
        changes |= {"mlp_site": "experts"} if model is mixture and precision in ("int8", "bfloat16") else {}
        sparsity = SPARSITY.model_copy(update=changes)
        engine = engine_of(model, sparsity, precision, kv_cache_dtype=KV_CACHES[kv], library=built)
        for count in (2, 5, 19) if precision == "packed" else (2, 5):
            alone = of_many_lengths(engine, count, sparsity)
            together = Rows.beside(alone)
            keep = torch.tensor([ACTIONS[row % len(ACTIONS)] for row in range(count)], dtype=torch.float64)[:, None]
            for some in (tokens(count, 1, seed=1), tokens(count, 3, seed=2)):
                every = keep.expand(-1, some.shape[1], -1)
                others = torch.tensor(ACTIONS[0], dtype=torch.float64).expand_as(every).clone()
                others[count - 1] = every[count - 1]
                beside = together.fork().run(some, others).logits
                found = together.run(some, every).logits
                for row in (0, count - 1):
                    assert torch.equal(found[row], beside[row]), (precision, row)
                integers = precision in ("int8", "packed", "nested")
                for row, one in enumerate(alone if integers or count * some.shape[1] == 2 else []):
                    steps = [one.run(some[[row]][:, [q]], every[[row]][:, [q]]).logits[0] for q in range(some.shape[1])]
                    assert torch.equal(found[row], torch.cat(steps)), (precision, count, row)


def tokens_are_the_same_alone_and_among_others(built) -> None:
    """To the last bit, in weights of integers: what up to 16 known tokens of a row, beside other numbers of other rows,
    give in one pass is what single steps give, and so are the keys and values that they leave."""
    dense = tiny_model("qwen3", torch.float32, intermediate_size=352, **GRID_SIZES)
    mixture = tiny_model("qwen3_moe", torch.float32, moe_intermediate_size=352, **GRID_SIZES)
    capped, biased, parallel = (
        tiny_model(family, torch.float32, **GRID_SIZES) for family in ("gemma2", "gpt_oss", "phi")
    )
    shared = tiny_model(
        "qwen2_moe", torch.float32, moe_intermediate_size=352, shared_expert_intermediate_size=416, **GRID_SIZES
    )
    counts = np.array([1, 5, 2, 16])
    ids, last = tokens(4, 16, seed=5), tokens(4, 1, seed=6)
    cases = (
        [
            (model, name)
            for model in (dense, mixture)
            for name in ("int8", "packed", "nested", "int8 kv", "packed kv", "packed kv4")
        ]
        + [(model, "int8") for model in (capped, biased, parallel, shared)]
        + [(biased, "int8 kv"), (shared, "packed")]
    )
    for model, name in cases:
        precision, _, kv = name.partition(" ")
        for threads in range(1, min(3, usable_cores().hardware_threads) + 1) if name == "packed" else (None,):
            kv_cache = {"kv_cache_dtype": KV_CACHES[kv]}
            engine = engine_of(model, SPARSITY, precision, threads, **kv_cache, library=built)
            alone = of_many_lengths(engine, 4, SPARSITY)
            together = Rows.beside(alone)
            found = together.run(ids, counts=counts)
            after = together.run(last)
            assert together.states["taken"].tolist() == (counts + 1).tolist()
            for row, one in enumerate(alone):
                steps = [one.run(ids[[row]][:, [q]]) for q in range(counts[row])]
                logits = torch.cat([step.logits[0] for step in steps])
                streams = np.concatenate([step.stream[0] for step in steps])
                assert torch.equal(found.logits[row, : counts[row]], logits), (name, threads, row)
                assert np.array_equal(found.stream[row, : counts[row]], streams), (name, threads, row)
                assert torch.equal(after.logits[row], one.run(last[[row]]).logits[0]), (name, threads, row)


def _going_on(rows: Rows, cut: int, seed: int) -> torch.Tensor:
    rows.lengths = rows.lengths - cut
    return rows.run(tokens(1, 70, seed=seed).expand(len(rows.caches), -1), (0.3, 1.0, 16)).logits


def forks_go_on_alone(built) -> None:
    """Forks, forks of forks, and rows that are cut back into pages that they share."""
    model = tiny_model("llama", torch.float32)
    for kv in KV_CACHES.values():
        engine = engine_of(model, SPARSITY, "int8", kv_cache_dtype=kv, library=built)
        for context in (15, 16, 40, 300):
            parent = Rows(engine)
            parent.run(tokens(1, context))
            forks = parent.fork(2)
            grown, cut = forks.fork(2), forks.fork()
            for rows, back, seed in ((parent, 9, 1), (forks, 0, 2), (cut, 12, 3), (grown, 0, 4)):
                alone = Rows(engine)
                alone.run(tokens(1, context))
                found, expected = _going_on(rows, back, seed), _going_on(alone, back, seed)
                assert torch.equal(found, expected.expand_as(found)), (kv, context, back)


def integer_heads_give_what_their_weights_give(built) -> None:
    """Odd sizes: strips and halves that are not full. Also the last logits alone."""
    for kind in (None, TensorType.Q4_1, TensorType.Q5_0, TensorType.Q8_0):
        model = tiny_model("llama", torch.float32, vocab_size=1003, **GRID_SIZES)
        source = LoadedModel(model) if kind is None else QuantisedModel(model, kind, embedding=kind)
        rows = Rows(Engine(source, SPARSITY, library=built), 3)
        rows.run(tokens(3, 40))
        found = rows.fork().run(tokens(3, 7, seed=5))
        expected = torch.from_numpy(found.stream) @ model.get_output_embeddings().weight.detach().T
        assert (found.logits - expected).abs().max() / expected.std() < 0.05, kind
        for wanted in (0, 1, 3):
            last = rows.fork().run(tokens(3, 7, seed=5), logit_steps=wanted)
            torch.testing.assert_close(last.logits, found.logits[:, 7 - wanted :], atol=1e-4, rtol=0)


def heads_of_every_form_are_exact(built) -> None:
    """All logits, and the largest where others are approximate."""
    states = torch.randn(16, 96, generator=torch.Generator().manual_seed(3))
    for form in FORMS:
        head, weight = random_head(form, 1003, 96)
        engine, expected = HeadEngine(head.struct, 1003, 96, states, built), rounded_states(states) @ weight.T
        for rows in (1, 3, 16):
            exact, found, most = engine.logits(0, rows), engine.logits(0, rows, 5), 2e-5 * float(expected.std())
            assert torch.allclose(exact.double(), expected[:rows], rtol=0, atol=most), form
            top = exact.topk(5).indices
            assert torch.allclose(exact.gather(1, top), found.gather(1, top), rtol=0, atol=2 * most), form


def packed_weights_of_every_type_give_what_they_mean(built) -> None:
    """No further off than int8, of which the weights are rounded: tensors of different types side by side, groups of 16
    and 32; also of embeddings and heads."""
    types = (
        TensorType.Q4_0, TensorType.Q5_0, TensorType.Q6_K, TensorType.Q8_0, TensorType.Q4_K, TensorType.Q5_1,
        TensorType.Q2_K, TensorType.Q3_K, TensorType.IQ4_NL, TensorType.IQ4_XS, TensorType.MXFP4,
    )  # fmt: skip
    actions = [(1.0, 1.0, 16), (1.0, 0.5, 16)]
    for shift, kind in enumerate(types):
        model = tiny_model("llama", torch.float32, **K_SIZES)
        source = QuantisedModel(model, *types[shift:], *types[:shift], embedding=kind)
        floats, int8 = (engine_of(model, precision=name, library=built) for name in ("float32", "int8"))
        found = []
        for engine in (floats, int8, Engine(source, SPARSITY, library=built)):
            rows = Rows(engine, 3)
            rows.run(tokens(3, 40))
            found.append([rows.fork().run(tokens(3, 9, seed=5), action) for action in actions])
            cut = rows.fork()
            parts = [cut.run(part, actions[1]).stream for part in tokens(3, 9, seed=5).split([4, 5], 1)]
            assert np.array_equal(np.concatenate(parts, 1), found[-1][1].stream), kind
        for exact, rounded, packed in zip(*found, strict=True):
            usual, off = (np.linalg.norm(other.stream - exact.stream) for other in (rounded, packed))
            assert off < 1.3 * usual, (kind, off / usual)
            usual, off = ((other.logits - exact.logits).norm() for other in (rounded, packed))
            assert off < 1.3 * usual, (kind, off / usual)


def decisions_are_counted(built) -> None:
    """The same whether tokens come one by one or at once, for rows with and without a policy."""
    model = tiny_model("llama", torch.float32)
    policies = [decider(layer) for layer in (0, 1)]
    for policy in policies:
        engine = engine_of(model, SPARSITY, "float32", library=built)
        rows = [under(Rows(engine, 3), policy) for _ in range(2)]
        ids = tokens(3, 60, seed=7)
        for some in rows:
            some.states["decider"][1] = 0
            some.run(ids[:, :10])
        at_once = rows[0].run(ids[:, 10:], decide=True)
        found = [rows[1].run(ids[:, q : q + 1], decide=True) for q in range(10, 60)]
        assert np.array_equal(at_once.actions, np.concatenate([step.actions for step in found], 1))
        assert (at_once.actions[1] == -1).all()
        assert len(np.unique(at_once.actions[0])) > 2
        assert rows[0].states.tobytes() == rows[1].states.tobytes()
        state = rows[0].states
        assert state["taken"].tolist() == [60] * 3
        assert state["counted"].tolist() == [[60 - SPARSITY.always_read, 60, 60]] * 3
        assert state["previous"][0] == at_once.actions[0, -1]
        counted = (at_once.realised * SPARSITY.controllable(np.arange(11, 61))).sum(1)
        dense = np.array([0, 10, 10])  # what the first ten steps spent
        assert np.allclose(state["spent"], dense + counted, rtol=0, atol=1e-12)


def whatever_it_is_given_it_computes_or_refuses(built) -> None:
    """And nothing has changed after a refusal."""
    draw = np.random.default_rng(0)
    odd = [0.0, 0.5, 1.0, 2.0, 16.0, 17.0, -1.0, float("nan"), float("inf")]
    engine = engine_of(tiny_model("llama", torch.float32), SPARSITY, "int8", library=built)
    parent = Rows(engine, 2, capacity=100)
    parent.run(tokens(2, 70))
    outcomes = set()
    for _ in range(100):
        rows, count = parent.fork(capacity=96), int(draw.integers(0, 30))
        ids = torch.from_numpy(draw.integers(-1 if draw.random() < 0.1 else 0, 260, (2, count)))
        keep = torch.tensor([draw.choice(odd[1:3]), draw.choice(odd[:3]), 8.0], dtype=torch.float64).expand(2, count, 3)
        if draw.random() < 0.4:
            keep = torch.from_numpy(draw.choice(odd, (2, count, 3)))
        before = rows.states.tobytes()
        try:
            assert bool(rows.run(ids, keep).logits.isfinite().all())
            outcomes.add("computed")
        except DataError:
            assert rows.states.tobytes() == before
            outcomes.add("refused")
    assert outcomes == {"computed", "refused"}


def tensors_are_repacked_within_their_memory(built) -> None:
    """Whatever their type, and where two share bytes; the same on every processor."""
    for kind in ALL_TYPES:
        numbers = QUANTISED.get(kind)
        # Numbers of a file on a grid of 16 values would all be halfway in the nested form.
        own = [NESTED] if numbers is None else [Form(Target.OWN, numbers)]
        for form in (*own, INT8, Form(Target.BFLOAT16), Form(Target.FLOAT32)):
            for counts in ((64,), (96, 32, 192), *([] if form.numbers else [(20,)])):
                tensors = [tensor_of(kind, count, 256, seed) for seed, count in enumerate(counts)]
                found = repacked(tensors, form, built=built)
                for name, wanted in repacked(tensors, form, threads=1).items():
                    if name == "scale":
                        np.testing.assert_allclose(found[name].view(np.float32), wanted.view(np.float32), rtol=1e-6)
                        continue
                    # Compilers round products and quotients in other ways, and so a few numbers that are halfway.
                    assert (found[name] != wanted).mean() <= (0 if form.target == Target.OWN else 0.01), (
                        kind,
                        form,
                        name,
                    )
        some = tensors[0]
        np.testing.assert_allclose(dequantise(built, some), values_of(some), rtol=1e-5, atol=1e-7)


EDGES: list[Callable[..., None]] = [
    dense_equals_the_model, prompts_equal_steps, sparse_equals_the_native_build,
    steps_do_not_depend_on_their_neighbours, tokens_are_the_same_alone_and_among_others, forks_go_on_alone,
    integer_heads_give_what_their_weights_give,
    heads_of_every_form_are_exact, packed_weights_of_every_type_give_what_they_mean,
    tensors_are_repacked_within_their_memory, decisions_are_counted, whatever_it_is_given_it_computes_or_refuses,
]  # fmt: skip

if __name__ == "__main__":
    built = library(" ".join(sys.argv[1:]))
    for edge in EDGES:
        if edge is not sparse_equals_the_native_build:  # a build without the sanitizers' runtime would go unchecked
            edge(built)
            print(edge.__name__, flush=True)
