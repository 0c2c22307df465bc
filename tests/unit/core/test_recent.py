"""What was made for the last few keys."""

import sys
from concurrent.futures import ThreadPoolExecutor

from solm.core.recent import Recent


def test_the_last_keys_are_kept_and_older_ones_are_made_again():
    recent, made = Recent(2), []

    def value(key):
        return recent.get(key, lambda: made.append(key) or key * 10)

    assert [value(key) for key in (1, 2, 1, 3, 2, 1)] == [10, 20, 10, 30, 20, 10]
    assert made == [1, 2, 3, 1]


def test_threads_may_share_one():
    recent, before = Recent(4), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda number: recent.get(number % 13, lambda: number % 13), range(20_000)))
    finally:
        sys.setswitchinterval(before)
    assert found == [number % 13 for number in range(20_000)]
    assert len(recent._values) == 4
