"""The package as a person meets it in an interpreter."""

import solm


def test_completion_offers_the_api_and_nothing_else():
    assert set(dir(solm)) == {*solm.__all__, "__version__"}
    assert all(getattr(solm, name) is not None for name in dir(solm))
