"""A base model whose layers wait on the disk, as accelerate's `device_map` puts them, under control."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import solm
from helpers.models import keep_of, tiny_model


@pytest.mark.parametrize("away", [("model.layers.1",), ("model.layers.0", "model.layers.1", "model.norm", "lm_head")])
def test_layers_on_the_disk_obey_every_action_like_those_in_memory(tmp_path, away):
    whole = tiny_model("llama")
    whole.save_pretrained(tmp_path / "model")
    places = ("model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.layers.1", "model.norm", "lm_head")
    offloaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float64, offload_folder=tmp_path / "away",
        device_map={place: "disk" if place in away else "cpu" for place in places},
    )  # fmt: skip
    assert next(offloaded.model.layers[1].parameters()).is_meta
    ids = torch.randint(3, 259, (2, 140), generator=torch.Generator().manual_seed(0))

    def found(model):
        with solm.attach(model) as lm:
            session = lm.session()
            session.prefill(ids[:, :100])
            scored = [
                session.fork(1).score(ids[:, 100:], keep_of(action, 2, 39)).log_probabilities
                for action in ((1.0, 1.0, 16), (0.4, 0.6, 6))
            ]
            return scored, [token.id for token in lm.generate(ids[:1, :90], max_new_tokens=8).tokens]

    (scored, said), (expected, told) = found(offloaded), found(whole)
    assert all(map(torch.equal, scored, expected))
    assert not torch.equal(*scored)
    assert said == told
