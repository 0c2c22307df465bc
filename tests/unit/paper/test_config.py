"""Settings of training: unknown keys, ranges and YAML files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solm.core.errors import SolmError
from solm.paper.config import TrainConfig, read_values


@given(st.text(min_size=1, max_size=12))
def test_unknown_keys_are_refused(key):
    if key in TrainConfig.model_fields:
        return
    with pytest.raises(SolmError, match="unknown key"):
        TrainConfig.build({key: 1}, "x.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 1}, "unknown key 'learning_rat'; did you mean 'learning_rate'"),
        ({"gamma": 2}, r"gamma: Input should be less than or equal to 1 \(got 2\)"),
        ({"space": "joint-9"}, "unknown action space 'joint-9'; choose one of"),
        ({"rollouts": 1}, "rollouts: Input should be greater than or equal to 2"),
        ({"width": 30}, "width 30 must be a multiple of heads 4"),
    ],
)
def test_bad_settings_name_key_value_and_range(values, message):
    with pytest.raises(SolmError, match=message):
        TrainConfig.build(values, "x.yaml")


def test_yaml_files(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("space: joint-27\ngamma: 0.9\ndata: a.txt, b.txt\n")
    config = TrainConfig.build({**read_values(path), "gamma": 0.5}, str(path))
    assert (len(config.space), config.gamma, config.data) == (27, 0.5, ("a.txt", "b.txt"))
    for content, message in [("a: [", "cannot read"), ("- 1", "expected keys and values"), ("\x00", "cannot read")]:
        path.write_text(content)
        with pytest.raises(SolmError, match=message):
            TrainConfig.build(read_values(path), str(path))
    with pytest.raises(SolmError, match="cannot read"):
        read_values(tmp_path / "none.yaml")
