"""API keys and their names."""

import pytest

from solm.core.errors import SolmError
from solm.serving.keys import ApiKey, read_keys


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("secret", ApiKey("secret")), ("alice:secret", ApiKey("secret", "alice")), ("a:b:c", ApiKey("b:c", "a")),
        ("bëta", ApiKey("bëta")), ("sk-1==", ApiKey("sk-1==")), (":x", ApiKey(":x")), ("x:", ApiKey("x:")),
    ],
)  # fmt: skip
def test_a_key_has_a_name_where_one_stands_before_it(text, key):
    assert ApiKey.parse(text) == key


def test_a_list_of_keys():
    assert [key.name for key in read_keys(" one, a:two ,,b:two")] == ["", "a", "b"]
    assert read_keys("") == []
    with pytest.raises(SolmError, match="two keys are named 'a'"):
        read_keys("a:one,a:two")
