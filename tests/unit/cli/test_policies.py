"""`solm policies`: a policy of the hub lands where it was asked for, once it is known to be whole."""

import json
import sys

import pytest

from helpers.policies import under_policy
from solm.cli.main import main
from solm.core.cost import ModelShapes
from solm.core.errors import SolmError
from solm.policies.artifact import CONFIG, WEIGHTS, TrainedPolicy
from solm.runtime.load import ModelFacts, shipped_policy

FITTED = "builtin:qwen2.5-coder-0.5b-instruct"


@pytest.fixture
def pull(policy_lm, tmp_path, monkeypatch, capsys):
    """The command, with a hub that has one repository; returns exit code, output and errors."""
    cache = tmp_path / "cache"
    trained = under_policy(policy_lm).trained
    TrainedPolicy(trained.config, trained.network, TrainedPolicy.from_pretrained(FITTED).curve).save_pretrained(cache)
    asked = []

    def download(name, revision=None, **_):
        asked.append((name, revision))
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["solm", "policies", "pull", "me/mine", *map(str, options)])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return ended.value.code or 0, shown.out, shown.err

    run.cache, run.asked = cache, asked
    return run


def test_it_says_where_the_policy_is(pull, tmp_path):
    assert pull() == (0, f"{pull.cache}\n", "")
    out = tmp_path / "mine"
    code, said, _ = pull("--out", out, "--revision", "v2", "--json")
    assert code == 0
    assert json.loads(said) == {"policy": "me/mine", "folder": str(out)}
    assert pull.asked == [("me/mine", None), ("me/mine", "v2")]
    for part in (CONFIG, WEIGHTS):
        assert (out / part).read_bytes() == (pull.cache / part).read_bytes()
    assert TrainedPolicy.from_pretrained(out).curve == TrainedPolicy.from_pretrained(FITTED).curve
    code, _, error = pull("--out", out)
    assert code == 2
    assert "holds a policy already" in error


def test_a_damaged_one_or_none_is_refused_and_not_written(pull, tmp_path):
    weights = pull.cache / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    code, _, error = pull("--out", tmp_path / "mine")
    assert code == 3
    assert error.startswith("solm: NAME: ")
    (pull.cache / CONFIG).unlink()
    code, _, error = pull("--out", tmp_path / "mine")
    assert code == 2
    assert f"no policy at 'me/mine': this hub repository has no {CONFIG}" in error
    assert not (tmp_path / "mine").exists()


def facts(base, **changes):
    """What a model file says of a model of this size before it is loaded."""
    sizes = dict.fromkeys(("intermediate", "heads", "kv_heads", "head_dim"), 1)
    shapes = ModelShapes(layers=base.layers, hidden=base.hidden, vocabulary=base.vocabulary, gated=True, **sizes)
    return ModelFacts(base.family, None, shapes.model_copy(update=changes))


def test_auto_is_the_policy_that_ships_for_the_model():
    shipped = TrainedPolicy.from_pretrained("builtin:smollm2-135m-cpu")
    base, heads = shipped.config.base, shipped.config.sparsity.allocation.heads
    assert shipped_policy(facts(base, kv_heads=heads)) == "builtin:smollm2-135m-cpu"
    assert shipped_policy(facts(base)) == "builtin:smollm2-135m-cpu"
    with pytest.raises(SolmError, match="no policy ships for this llama model"):
        shipped_policy(facts(base, layers=31))
