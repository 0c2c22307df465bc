"""Which of several replicas a request goes to: one that has read how its conversation begins, unless it is too busy."""

import hashlib
import json
import math
from collections.abc import Mapping

LENGTH = 1024
"""Characters of JSON that tell beginnings apart."""
_BALANCE = 1.25
"""A replica gets at most this many times its share of the requests in flight for the sake of a beginning."""


def beginning(body: bytes) -> str | None:
    """How the conversation, prompt or input in a request's body begins: its first messages, up to the first one of a
    user, in at most `LENGTH` characters. Later turns begin alike. None for what is no such request."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(asked, dict):
        return None
    turns = asked.get("messages") or asked.get("input") or asked.get("prompt")
    if not turns:
        return None
    if isinstance(turns, list):
        users = (place for place, turn in enumerate(turns) if isinstance(turn, dict) and turn.get("role") == "user")
        turns = turns[: next(users, len(turns)) + 1]
    return json.dumps([asked.get("instructions"), turns])[:LENGTH]


def in_order(begins: str | None, loads: Mapping[int, int]) -> list[int]:
    """Replicas in the order in which a request should try them.

    begins: as of `beginning`. loads: requests in flight, by the numbers of replicas. The first is by rendezvous hashing
    of the beginning, so that few beginnings move where a replica comes or goes, unless its load is beyond its bounds;
    the others follow by their loads.
    """
    idlest = sorted(loads, key=lambda number: (loads[number], number))
    if begins is None or len(loads) < 2:
        return idlest
    first = max(loads, key=lambda number: hashlib.blake2b(f"{number} {begins}".encode()).digest())
    if loads[first] >= math.ceil(_BALANCE * (sum(loads.values()) + 1) / len(loads)):
        return idlest
    return [first, *(number for number in idlest if number != first)]
