"""Actions and action spaces."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.schedules import SPACES
from solm.core.actions import PRESETS, Action, ActionSpace


def test_presets_end_at_the_dense_action():
    for space in PRESETS.values():
        assert space.actions[space.dense_index] == (1.0, 1.0, 16)
    order = [action.tag for action in PRESETS["joint-8"].actions[:3]]
    assert order == ["k010-s060-q5", "k010-s060-q16", "k010-s100-q5"]


@given(SPACES, st.data())
def test_tags_and_indices_round_trip(space, data):
    index = data.draw(st.integers(0, len(space) - 1))
    assert Action.from_tag(space.actions[index].tag) == space.actions[index]


@pytest.mark.parametrize(
    "levels",
    [{"mlp": (0.5,)}, {"mlp": (1.0, 0.5)}, {"bits": (1, 16)}, {"attention": (0.0, 1.0)}, {"mlp": ()}, {"bits": ()}],
)
def test_spaces_without_the_dense_action_or_out_of_range_are_refused(levels):
    with pytest.raises(ValueError, match=r"levels must rise|keep rates|activation bits"):
        ActionSpace(**levels)


def test_an_axis_that_cannot_be_controlled_is_dense():
    space = PRESETS["joint-27"]
    actions, controllable = np.arange(27), np.array([False, True, True])
    found = space.controlled(actions, np.broadcast_to(controllable, (27, 3)))
    assert [space.actions[index] for index in found] == [some._replace(attention=1.0) for some in space.actions]
    assert space.controlled(actions, np.ones((27, 3), dtype=bool)).tolist() == actions.tolist()
