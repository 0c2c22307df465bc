"""Numbers in sentences."""

import pytest

from solm.core.errors import counted


@pytest.mark.parametrize(
    ("count", "words"), [(1, "1 minute"), (1.0, "1 minute"), (0.5, "0.5 minutes"), (0, "0 minutes"), (2, "2 minutes")]
)
def test_only_one_is_singular(count, words):
    assert counted(count, "minute") == words
