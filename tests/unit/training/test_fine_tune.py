"""Fine-tuning by policy gradient: what it changes, and what it leaves."""

import torch

from solm.data.windows import token_stream
from solm.training.fine_tune import FineTuneConfig, fine_tune

SMALL = FineTuneConfig(context=40, length=12, learning_rate=0.01)


def test_sensitivities_and_their_prices_change_and_nothing_else(value_lm):
    trained = value_lm.trained
    before = {name: values.clone() for name, values in trained.network.state_dict().items()}
    lm = value_lm.with_policy(None, value_lm.sparsity)
    streams = [token_stream("pydoc:train", lm.tokenizer)]
    tuned, again = (fine_tune(lm, trained, streams, SMALL, lambda done: done < 3).network for _ in range(2))
    for name, values in tuned.state_dict().items():
        assert torch.equal(trained.network.state_dict()[name], before[name]), "the given policy stays as it is"
        assert torch.equal(again.state_dict()[name], values), "a seed says what comes out"
        changed = name.split(".")[0] in ("read", "head", "training_sensitivities")
        assert torch.equal(values, before[name]) != changed, name
    assert tuned.training_sensitivities.isfinite().all()


def test_no_update_changes_nothing(value_lm):
    trained, lm = value_lm.trained, value_lm.with_policy(None, value_lm.sparsity)
    same = fine_tune(lm, trained, [token_stream("pydoc:train", lm.tokenizer)], SMALL, lambda done: False)
    for name, values in trained.network.state_dict().items():
        assert torch.equal(same.network.state_dict()[name], values)
