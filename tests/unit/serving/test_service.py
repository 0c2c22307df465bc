"""What a request leaves to the scheduler when it is over."""

import asyncio
from types import SimpleNamespace

import pytest

from solm.serving.failures import ApiError
from solm.serving.rows import Ended, Failed, Piece
from solm.serving.service import Exchange, Service


def test_only_jobs_that_have_not_ended_are_cancelled():
    cancelled: list[str] = []
    service = SimpleNamespace(scheduler=SimpleNamespace(cancel=cancelled.append))

    async def run(*events) -> list[str]:
        exchange = Exchange(["a", "b", "c"], asyncio.Queue(), None, [])
        for event in events:
            exchange.events.put_nowait(event)
        async for _ in exchange.each():
            if exchange.events.empty():
                break
        cancelled.clear()
        Service.close(service, exchange)
        return list(cancelled)

    def ends(index: int):
        return index, Ended("stop", 1, 0, 1, None)

    assert asyncio.run(run((0, Piece("x", ())), ends(1))) == ["a", "c"]
    assert asyncio.run(run(ends(2), ends(0), ends(1))) == []
    with pytest.raises(ApiError):
        asyncio.run(run((0, Failed("no"))))
