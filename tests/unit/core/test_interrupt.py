"""Signals that end a run in good order."""

import os
import signal

from solm.core.interrupt import SIGTERM_CODE, signals


def test_the_first_signal_is_noted_and_the_second_one_acts_as_before():
    arrived = []
    before = signal.signal(signal.SIGTERM, lambda *_: arrived.append("as before"))
    own = signal.getsignal(signal.SIGTERM)
    try:
        with signals() as stop:
            assert stop == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert (stop, arrived) == ([SIGTERM_CODE], [])
            os.kill(os.getpid(), signal.SIGTERM)
            assert (stop, arrived) == ([SIGTERM_CODE], ["as before"])
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)
    assert SIGTERM_CODE == 143
