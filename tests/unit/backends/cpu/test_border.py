"""The border to the compiled engine: whatever crosses it is checked, from any thread, with or without memory."""

import ctypes
import shutil

import numpy as np
import pytest
import torch

from helpers.engine import KV_CACHES, engine_of
from helpers.engine_edges import SPARSITY, Rows, decider, tokens, under
from helpers.models import tiny_model
from solm.backends.budgets import ROW_STATE
from solm.backends.cpu import border
from solm.backends.cpu.call import Cache
from solm.backends.cpu.engine import Engine
from solm.backends.cpu.library import library
from solm.backends.session import MOST_EXACT
from solm.core import actions
from solm.core.errors import DataError, SolmError
from solm.core.sparsity import KNOTS, PERCENTAGES, SITES, Allocation, SparsityConfig
from solm.policies.priced import UNBIASED_STEPS
from solm.policies.schedules import SHORTEST_HORIZON

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


@pytest.fixture(scope="module")
def engine():
    return engine_of(tiny_model("llama", torch.float32), SPARSITY, "float32")


@pytest.fixture
def rows(engine):
    """Two rows of 70 tokens."""
    rows = Rows(engine, 2)
    rows.run(tokens(2, 70))
    return rows


STEP = tokens(2, 1, seed=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": torch.tensor([[5], [259]])}, r"token ids must be in \[0, 258\], got 259"),
        ({"tokens": tokens(3, 1)}, r"tokens must be integers \[2, at least 1\]"),
        ({"keep": (1.1, 1.0, 16)}, r"keep must be shares in \[0, 1\] and bits in \[2, 16\], got 1.1, 1, 16"),
        ({"keep": (1.0, float("nan"), 16)}, "keep must be shares"),
        ({"lengths": np.array([70, 512])}, r"row 1: .* 512 positions take 1 more from \[0, 511\], got 512"),
        ({"lengths": np.array([70])}, r"lengths must be \[2\]"),
        ({"last": 3}, r"layers must be within \[0, 2\), got \[0, 3\)"),
        ({"first": 1}, "layers from 1 on need the result of those before them"),
        ({"logit_steps": 2}, r"logit_steps must be in \[0, 1\], got 2"),
        ({"states": np.zeros(1, ROW_STATE)}, r"states must be writable records of dtype ROW_STATE \[2\]"),
    ],
)
def test_a_call_that_is_out_of_range_is_refused_and_changes_nothing(rows, change, message):
    expected, known = rows.fork().run(STEP).logits, rows.states.tobytes()
    given = {"tokens": STEP, "lengths": rows.lengths, "states": rows.states, "keep": None, **change}
    if given["keep"] is not None:
        given["keep"] = torch.tensor(given["keep"], dtype=torch.float64).expand(2, 1, 3)
    with pytest.raises(DataError, match=message):
        rows.call.run(rows.caches, **given)
    assert rows.states.tobytes() == known
    assert torch.equal(rows.run(STEP).logits, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 3}, r"the policy's layer must be in \[0, 2\], got 3"),
        ({"layer": 1, "hidden": 96}, "the policy reads 96 channels, and the model has 64"),
        ({"layer": 1, "levels": [np.linspace(0.1, 1, 101), np.ones(1), np.array([16.0])]}, "1 to 100 levels, got 101"),
        ({"layer": 1, "prices": np.zeros(0)}, "at least 1 point, got 0"),
    ],
)
def test_a_policy_that_does_not_fit_the_model_is_refused(rows, options, message):
    policy = decider(**{"layer": 1, **options})
    known = under(rows, policy).states.tobytes()
    with pytest.raises(DataError, match=message):
        rows.run(STEP, decide=True)
    assert rows.states.tobytes() == known


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("horizon", 0, "row 1: horizon must be at least 1"),
        ("taken", -1, "row 1: horizon must be at least 1 and steps at least 0"),
        ("counted", -1, "row 1: horizon must be at least 1 and steps at least 0"),
        ("target", 1.5, r"row 1: budget shares must be in \[0, 1\]"),
        ("target", float("nan"), "row 1: budget shares"),
        ("spent", float("inf"), "row 1: budget shares"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(rows, field, value, message):
    under(rows, policy := decider(1)).states[field][1] = value
    with pytest.raises(DataError, match=message):
        rows.run(STEP, decide=True)
    assert policy.address
    rows.run(STEP)  # nothing is decided


def test_policies_of_one_call_decide_before_one_layer_and_in_calls_of_all_layers(rows):
    policies = decider(0), decider(1)
    under(rows, policies[0])
    with pytest.raises(DataError, match=r"a policy decides in calls of all layers \[0, 2\), got \[0, 1\)"):
        rows.run(STEP, decide=True, last=1)
    rows.states["decider"][1] = policies[1].address
    with pytest.raises(DataError, match="must decide before the same layer, got 0 and 1"):
        rows.run(STEP, decide=True)


def test_caches_belong_to_one_engine(engine, rows):
    other = engine_of(tiny_model("llama", torch.float32, num_hidden_layers=1), SPARSITY, "float32")
    stranger = Cache(other, 64)
    with pytest.raises(DataError, match="a cache belongs to another engine"):
        rows.call.run((rows.caches[0], stranger), STEP, np.zeros(2, np.int64), rows.states)
    with pytest.raises(DataError, match="a cache belongs to another engine"):
        Cache(engine, 64, stranger)


def test_sparsity_must_fit_the_model(engine):
    even = tuple((np.arange(KNOTS) / (KNOTS - 1)).tolist())
    of_bits = Allocation(**dict.fromkeys(("attention", "mlp", "hidden", "input_bits", "hidden_bits"), (even,) * 2))
    three = Allocation(**dict.fromkeys(("attention", "mlp", "hidden"), (even,) * 3))
    heads = Allocation(attention=(even,) * 6, mlp=(even,) * 2, hidden=(even,) * 2)
    for sparsity, message in (
        (SPARSITY.under(three), "for 3 layers, and the model has 2"),
        (SPARSITY.under(heads), "for 3 KV heads, and the model has 2"),
        (
            SparsityConfig(window=16, bits_site="weights"),
            "bits of weights need MLP weights whose upper 4 bits can be read alone",
        ),
        (
            SPARSITY.model_copy(update={"allocation": of_bits}),
            "an allocation of weight bits needs one of hidden channels and bits of weights",
        ),
        (SparsityConfig(window=0, sinks=0), "window must be at least 16, got 0"),
    ):
        with pytest.raises(DataError, match=message):
            Rows(engine, sparsity=sparsity).run(tokens(1, 1))


@pytest.fixture(scope="module")
def counting():
    """A build that counts allocations and can be told to fail one."""
    built = library("-DSOLM_TEST_ALLOCATIONS -Wl,-Bsymbolic -O1")
    built.solm_test_allocations.restype = ctypes.c_int64
    built.solm_test_fail_allocation.argtypes = [ctypes.c_int64]
    yield built
    built.solm_test_fail_allocation(-1)


@pytest.mark.slow  # a build of its own
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "packed", "nested", "int8 kv", "int8 kv4"])
def test_a_step_allocates_nothing(counting, precision):
    precision, _, kv = precision.partition(" ")
    model = tiny_model("llama", torch.float32, vocab_size=300)
    engine = engine_of(model, SPARSITY, precision, 2, KV_CACHES[kv], library=counting)
    rows, policy = Rows(engine, 3), decider(1)
    rows.run(tokens(3, 65))
    known = []
    for step in range(12):
        before = counting.solm_test_allocations()
        deciding = step >= 4
        under(rows, policy) if deciding else None
        head = {"exact_largest": step % 2 == 1, "exact_rows": np.arange(3) == step % 4}
        rows.run(tokens(3, 1, seed=step), (0.3, 0.6, 8), decide=deciding, **head)
        known.append(counting.solm_test_allocations() - before)
    assert counting.solm_test_allocations() > 10
    assert known[1:4] == [0] * 3
    assert known[5:] == [0] * 7  # the first decision makes room for the network


def _longer_context(engine: Engine) -> torch.Tensor:
    rows = Rows(engine)
    rows.run(tokens(1, 300))
    return rows.run(tokens(1, 5, seed=3), (0.3, 1.0, 16)).logits


def _decided(engine: Engine) -> torch.Tensor:
    policy = decider(1)
    rows = under(Rows(engine, 2), policy)
    return rows.run(tokens(2, 60), decide=True).logits


@pytest.mark.slow  # a build of its own
@pytest.mark.parametrize("job", [_longer_context, _decided])
def test_without_memory_there_is_one_error_and_everything_goes_on(counting, job):
    """Whichever allocation fails, of the engine's creation too."""
    model = tiny_model("llama", torch.float32)

    def make() -> Engine:
        return engine_of(model, SPARSITY, "int8", 2, library=counting)

    expected, engine = job(make()), None
    for call in (make, job):
        messages: list[str] = []
        while True:
            given = () if call is make else (engine,)
            counting.solm_test_fail_allocation(len(messages))
            try:
                found = call(*given)
                break
            except SolmError as error:
                messages.append(str(error))
            finally:
                counting.solm_test_fail_allocation(-1)
        assert messages
        assert all(message.startswith("no memory for") and "\n" not in message for message in messages)
        if call is make:
            engine = found
    assert torch.equal(found, expected)
    assert torch.equal(job(engine), expected)


def test_python_and_the_engine_mean_the_same_constants_and_records():
    meant = {
        "KNOTS": KNOTS, "PERCENTAGES": PERCENTAGES, "SITES": len(SITES), "HIGH_BITS": actions.HIGH_BITS,
        "FULL_BITS": actions.FULL_BITS, "MOST_EXACT": MOST_EXACT, "SHORTEST_HORIZON": SHORTEST_HORIZON,
        "UNBIASED_STEPS": UNBIASED_STEPS,
    }  # fmt: skip
    assert {name: border.CONSTANTS[name] for name in meant} == meant
    assert np.dtype(border.RowState).fields == ROW_STATE.fields
