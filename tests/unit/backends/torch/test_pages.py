"""Upper bounds of pages."""

import torch

from solm.backends.torch.cache import PageBounds
from solm.backends.torch.pages import _group_queries, _page_scores


def test_page_bound_is_an_upper_bound_of_every_key_in_the_page():
    keys, query = torch.randn(2, 3, 24, 8), torch.randn(2, 3, 4, 2, 5, 8)
    shared = PageBounds.of(keys[:, :, None], 6)
    bound = _page_scores(_group_queries(query, "query_head"), shared)
    exact = (query @ keys[:, :, None, None].mT).unflatten(-1, (4, 6)).amax(-1)
    assert (bound >= exact - 1e-5).all()
    copied = PageBounds(*(part.expand(-1, -1, 4, -1, -1) for part in (shared.low, shared.high)))
    torch.testing.assert_close(_page_scores(_group_queries(query, "query_head"), copied), bound)
