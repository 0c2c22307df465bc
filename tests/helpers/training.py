"""Short GRPO runs of the tiny model."""

import torch

import solm
from helpers.models import tiny_model
from solm.paper.config import TrainConfig
from solm.paper.grpo import train

TINY = {
    "data": "pydoc:train", "space": "joint-8", "context": 90, "length": 6, "texts": 2, "rollouts": 4,
    "updates": 4, "width": 16, "heads": 2, "dtype": "float32", "learning_rate": 0.01,
}  # fmt: skip


def tiny_config(**changes) -> TrainConfig:
    return TrainConfig.build({**TINY, **changes}, "test")


def run(tmp_path, name, byte_tokenizer, stop_after=None, **changes):
    """Train in tmp_path/name; stop_after: interrupt it during that update."""
    config = tiny_config(**changes)

    def report(record):
        if record["update"] == stop_after:
            raise KeyboardInterrupt

    with solm.attach(tiny_model("llama", torch.float32), tokenizer=byte_tokenizer, sparsity=config.sparsity) as lm:
        before = [p.clone() for p in lm.model.parameters()]
        try:
            trained = train(lm, config, tmp_path / name, report)
        finally:
            assert all(torch.equal(a, b) for a, b in zip(before, lm.model.parameters(), strict=True))
    return trained.network.state_dict()
