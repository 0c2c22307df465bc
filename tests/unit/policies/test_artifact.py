"""Files of policies: round trips, damage, and policies that do not fit."""

import contextlib
import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

import solm
from helpers.models import tiny_model
from helpers.policies import EVEN, network
from solm.core.actions import ActionSpace
from solm.core.errors import DamagedFileError, PolicyMismatchError, SolmError
from solm.core.sparsity import Allocation, SparsityConfig
from solm.policies.artifact import CONFIG, WEIGHTS, PolicyConfig, TrainedPolicy, digest_of, model_card

GRID = ActionSpace.preset("joint-8")


@pytest.fixture(scope="module")
def base():
    with solm.attach(tiny_model("llama", torch.float32)) as lm:
        yield lm


@pytest.fixture(scope="module")
def saved(base, tmp_path_factory):
    """A saved policy with an allocation."""
    sparsity = SparsityConfig(
        window=32, allocation=Allocation(attention=(EVEN,) * 4, mlp=(EVEN,) * 2, hidden=(EVEN,) * 2)
    )
    made = network(grid=GRID)
    config = PolicyConfig(
        base=base.identity, space=GRID, sparsity=sparsity, network=made.config, provenance={"data": "x"}
    )
    folder = tmp_path_factory.mktemp("policies") / "policy"
    TrainedPolicy(config, made).save_pretrained(folder)
    return folder


def test_save_and_load_round_trip(saved):
    loaded = TrainedPolicy.from_pretrained(saved)
    assert loaded.config.sparsity.window == 32
    for name, value in network(grid=GRID).state_dict().items():
        assert torch.equal(value, loaded.network.state_dict()[name])
    card = (saved / "README.md").read_text()
    assert "library_name: solm" in card
    assert '"data": "x"' in card


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
        # Not damage: a lost line end, or another spelling of the same number.
        with contextlib.suppress(ValueError):
            assume(json.loads(bytes(content)) != json.loads((saved / name).read_bytes()))
    (folder / name).write_bytes(content)
    with pytest.raises(DamagedFileError, match="damaged"):
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


def altered(source, folder, change=lambda config: None, tensors=lambda weights: None):
    """A copy of a saved policy with changed config and weights, and the digest that belongs to them."""
    config, weights = json.loads((source / CONFIG).read_text()), load_file(source / WEIGHTS)
    change(config)
    tensors(weights)
    config["digest"] = digest_of(config, save(weights))
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(save(weights))
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def test_files_of_format_1_are_refused_by_name(saved, tmp_path):
    folder = altered(saved, tmp_path / "old", lambda config: config.update(format=1))
    with pytest.raises(DamagedFileError, match=r"damaged or of another version: format: .* 2"):
        TrainedPolicy.from_pretrained(folder)


def _set(path, value):
    """A change of one entry of a config."""

    def change(config):
        *parents, last = path.split(".")
        for name in parents:
            config = config[name]
        config[last] = value

    return change


def _fill(name, value):
    """A change of one tensor's first entry."""

    def change(weights):
        weights[name].view(-1)[0] = value

    return change


CONFIG_CHANGES = [
    (_set("network.layer", 4000), "before layer 4000, the model has layers 0 to 1"),
    (_set("network.layer", 2), "before layer 2, the model has layers 0 to 1"),
    (_set("network.base_hidden", 32), "hidden size 32, the model has 64"),
    (_set("space.mlp", [0.4, 1.0]), "mlp level 0.4 is below what this policy was trained on, 0.6 to 1"),
    (_set("network.width", 24), r"head.weight of the policy has shape \[3, 16\]; it must be \[3, 24\]"),
    (lambda config: config["sparsity"]["allocation"].update(
        {name: config["sparsity"]["allocation"][name][:1] for name in ("attention", "mlp", "hidden")}),
     "allocation of 1 layers: the model has 2"),
]  # fmt: skip


TENSOR_CHANGES = [
    (_fill("head.weight", float("nan")), "head.weight of the policy holds values that are not finite"),
    (_fill("read.bias", float("inf")), "read.bias of the policy holds values that are not finite"),
    (_fill("level_costs.1", -0.25), r"level_costs.1 of the policy holds -0.25; it must be at least 0"),
    (_fill("scale", 0.0), r"scale of the policy holds 0; it must be above 0"),
    (_fill("trust", 1.5), r"trust of the policy holds 1.5; it must be in \[0, 1\]"),
    (_fill("training_sensitivities", -1.0), "training_sensitivities of the policy holds -1; it must be at least 0"),
    (lambda weights: weights.pop("trust"), "the weights of the policy lack trust"),
    (lambda weights: weights.update(more=torch.zeros(1)), "the weights of the policy hold the unknown tensor more"),
]


@pytest.mark.parametrize(("change", "message"), CONFIG_CHANGES)
def test_a_config_that_cannot_fit_is_refused_before_a_model_is_loaded(saved, tmp_path, change, message):
    with pytest.raises(PolicyMismatchError, match=message) as error:
        TrainedPolicy.from_pretrained(altered(saved, tmp_path / "misfit", change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("change", "message"), TENSOR_CHANGES)
def test_weights_that_cannot_be_are_refused_before_a_model_is_loaded(saved, tmp_path, change, message):
    with pytest.raises(PolicyMismatchError, match=message) as error:
        TrainedPolicy.from_pretrained(altered(saved, tmp_path / "misfit", tensors=change))
    assert "\n" not in str(error.value)


def test_what_needs_the_model_is_refused_when_it_is_attached(saved, tmp_path):
    def heads(config):
        allocation = config["sparsity"]["allocation"]
        allocation["attention"] = allocation["attention"][:1] * 6

    trained = TrainedPolicy.from_pretrained(altered(saved, tmp_path / "heads", heads))
    with pytest.raises(PolicyMismatchError, match="allocation of 3 KV heads: the model has 2"):
        solm.attach(tiny_model("llama", torch.float32), trained)


def test_a_pushed_policy_decodes_inside_transformers_generate(saved, tmp_path, monkeypatch):
    from huggingface_hub import HfApi

    pushed = tmp_path / "pushed"
    monkeypatch.setattr(HfApi, "create_repo", lambda *given, **options: None)
    monkeypatch.setattr(HfApi, "upload_folder", lambda *given, folder_path, **o: shutil.copytree(folder_path, pushed))
    TrainedPolicy.from_pretrained(saved).push_to_hub(str(pushed))  # which is then its own repository
    ids, told = torch.arange(5, 60)[None], {"max_new_tokens": 6, "do_sample": False}
    model = tiny_model("llama", torch.float32)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    made = model.generate(ids, custom_generate=str(pushed), trust_remote_code=True, budget="keep=0.7", **told)
    assert torch.equal(made, model.generate(ids, custom_generate=solm.custom_generate(saved, "keep=0.7"), **told))
    dense = model.generate(ids, custom_generate=str(pushed), trust_remote_code=True, **told)
    assert torch.equal(dense, model.generate(ids, **told))


@pytest.mark.parametrize(("name", "given"), [("owner/model", True), ("model.gguf", False), ("builtin:smollm2", False)])
def test_a_card_names_a_base_model_of_the_hub_alone(saved, name, given):
    config = TrainedPolicy.from_pretrained(saved).config
    card = model_card(config.model_copy(update={"base": config.base.model_copy(update={"name": name})}))
    assert (f"base_model: {name}\n" in card) == given
    assert "base_model" not in card or given
