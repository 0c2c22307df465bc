"""Files of policies: round trips, damage, and policies that do not fit."""

import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import solm
from helpers.models import tiny_model
from solm.core.actions import ActionSpace
from solm.core.errors import DamagedFileError, PolicyMismatchError, SolmError
from solm.core.sparsity import SparsityConfig
from solm.policies.artifact import PolicyConfig, TrainedPolicy
from solm.policies.network import Features, NetworkConfig, PolicyNetwork


def random_features(rows: int, steps: int, actions: int = 8, hidden: int = 64) -> Features:
    generator = torch.Generator().manual_seed(5)
    return Features(
        torch.randn(rows, steps, hidden, generator=generator),
        torch.randn(rows, steps, hidden, generator=generator),
        torch.rand(rows, steps, 8, generator=generator),
        torch.randint(actions, (rows, steps), generator=generator),
        torch.randn(rows, steps, actions, generator=generator),
    )


def scrambled(config: NetworkConfig) -> PolicyNetwork:
    """A network with no weight left at zero."""
    torch.manual_seed(0)
    network = PolicyNetwork(config).eval()
    for parameter in network.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return network


@pytest.fixture(scope="module")
def base():
    with solm.attach(tiny_model("llama", torch.float32)) as lm:
        yield lm


@pytest.fixture(scope="module")
def saved(base, tmp_path_factory):
    space = ActionSpace.preset("joint-8")
    config = PolicyConfig(
        base=base.identity,
        space=space,
        sparsity=SparsityConfig(window=32),
        network=NetworkConfig(base_hidden=64, actions=8, width=16, heads=2),
        provenance={"data": "x"},
    )
    folder = tmp_path_factory.mktemp("policy")
    TrainedPolicy(config, scrambled(config.network)).save_pretrained(folder)
    return folder


def test_save_and_load_round_trip(saved):
    loaded = TrainedPolicy.from_pretrained(saved)
    assert loaded.config.sparsity.window == 32
    for name, value in scrambled(loaded.config.network).state_dict().items():
        assert torch.equal(value, loaded.network.state_dict()[name])
    card = (saved / "README.md").read_text()
    assert "library_name: solm" in card
    assert "data: x" in card


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_any_truncation_or_flipped_bit_is_one_typed_error(saved, tmp_path, data):
    name = data.draw(st.sampled_from(["policy.safetensors", "policy_config.json"]))
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved, folder)
    content = bytearray((folder / name).read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    if name == "policy_config.json":
        # A flip inside a name or number may leave a valid file; the checksum speaks for the weights only.
        try:
            if PolicyConfig.model_validate_json(bytes(content)):
                return
        except (ValueError, SolmError):
            pass
    (folder / name).write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"damage|checksum|fit"):
        TrainedPolicy.from_pretrained(folder)


def test_a_missing_policy_and_a_missing_file_are_named(saved, tmp_path):
    with pytest.raises(SolmError, match="no policy at 'nowhere/at-all'"):
        TrainedPolicy.from_pretrained("nowhere/at-all")
    folder = tmp_path / "half"
    shutil.copytree(saved, folder)
    (folder / "policy.safetensors").unlink()
    with pytest.raises(SolmError, match=r"no file .*policy\.safetensors"):
        TrainedPolicy.from_pretrained(folder)


def test_a_policy_for_other_shapes_or_other_weights_is_refused_and_the_model_left_alone(saved, base):
    wider = tiny_model("llama", torch.float32, hidden_size=128)
    with pytest.raises(PolicyMismatchError, match="hidden 64"):
        solm.attach(wider, saved)
    assert not wider.config._attn_implementation.startswith("solm")
    other = tiny_model("llama", torch.float32)
    other.model.embed_tokens.weight.data.neg_()
    with pytest.raises(PolicyMismatchError, match="other weights"):
        solm.attach(other, saved)
    with solm.attach(tiny_model("llama", torch.bfloat16), saved) as lm:
        assert lm.sparsity.window == 32


def test_a_config_whose_network_does_not_fit_its_space_is_refused(saved, tmp_path):
    folder = tmp_path / "misfit"
    shutil.copytree(saved, folder)
    config = json.loads((folder / "policy_config.json").read_text())
    config["network"]["actions"] = 9
    (folder / "policy_config.json").write_text(json.dumps(config))
    with pytest.raises(PolicyMismatchError, match="9 actions, its action space 8"):
        TrainedPolicy.from_pretrained(folder)
