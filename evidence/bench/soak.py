"""A server under mixed load for a long time: nothing may leak, and every reply must be accounted for.

Sixteen clients send chats, streams that they hang up on, bodies that are refused, budgets that change and guesses of
any number, for `--minutes`. At the end no row may be left, what the server says of ended replies must be what the
clients saw, and its memory, in the median of the last third of the time, may be larger by at most `--growth` than in
that of the second third.

    python evidence/bench/soak.py --minutes 30
"""

import os
import random
import re
import statistics
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from evidence.bench.common import finish, parser
from evidence.bench.server_process import free_port, ours, server

CLIENTS = 16
_INTERVAL = 2.0  # seconds between two looks at the memory
BAD = ({}, {"messages": []}, {"efficiency": {"budget": 9}}, {"max_tokens": "many"}, {"tool_choice": "required"})
BUDGETS = (None, "keep=0.85", "keep=0.7", {"attention": 0.5}, {"mlp": 0.8})


def resident(process: int) -> int:
    """Bytes of a process in memory."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def client(address: str, seed: int, end: float) -> Counter[str]:
    """One client, until `end`: how many of its requests ended how."""
    draw, seen = random.Random(seed), Counter[str]()
    with httpx.Client(base_url=address, timeout=600) as http:
        while time.monotonic() < end:
            text = " ".join(draw.choices(("sky", "blue", "why", "sea", "list", "ten"), k=draw.randint(1, 120)))
            efficiency: dict[str, Any] = {"guess": draw.choice(("auto", "off", 3))}
            if (budget := draw.choice(BUDGETS)) is not None:
                efficiency["budget"] = budget
            body = {
                "model": "served", "messages": [{"role": "user", "content": text}], "seed": seed,
                "max_tokens": draw.randint(1, 48), "efficiency": efficiency,
            }  # fmt: skip
            kind = draw.choice(("whole", "stream", "hang up", "bad"))
            if kind == "bad":
                refused = http.post("/v1/chat/completions", json={"model": "served"} | draw.choice(BAD))
                seen["refused" if refused.status_code == 400 else f"bad body {refused.status_code}"] += 1
            elif kind == "whole":
                answer = http.post("/v1/chat/completions", json=body)
                seen["complete" if answer.status_code == 200 else f"{answer.status_code} {answer.text[:200]}"] += 1
            else:
                seen[_streamed(http, body, draw.randint(1, 4) if kind == "hang up" else None)] += 1
    return seen


def _streamed(http: httpx.Client, body: dict[str, Any], events: int | None) -> str:
    """How a streamed reply ended, of which so many events are read; None: all."""
    with http.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as stream:
        if stream.status_code != 200:
            return f"{stream.status_code} {stream.read()[:200].decode()}"
        for number, line in enumerate(line for line in stream.iter_lines() if line.startswith("data: ")):
            if line == "data: [DONE]":
                return "complete"
            if events is not None and number + 1 >= events:
                return "hung up"
    return "cut short"


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--minutes", type=float, default=30.0)
    made.add_argument("--growth", type=float, default=0.02, help="of the memory, as a share")
    asked = made.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command, port = ours(model=asked.model), free_port()
        with server(command, port, Path(folder) / "log") as served, ThreadPoolExecutor(CLIENTS) as pool:
            begun = time.monotonic()
            end = begun + 60 * asked.minutes
            clients = [pool.submit(client, served.address, seed, end) for seed in range(CLIENTS)]
            sizes = []
            while time.monotonic() < end:
                sizes.append(resident(served.process))
                time.sleep(_INTERVAL)
            seen = sum((each.result() for each in clients), Counter[str]())
            for _ in range(100):  # what was hung up on leaves before the next step
                text = httpx.get(f"{served.address}/metrics").text
                rows = sum(float(found) for found in re.findall(r"^solm_rows_(?:running|waiting) (\S+)", text, re.M))
                if not rows:
                    break
                time.sleep(0.1)
    ended = {how: int(float(n)) for how, n in re.findall(r'^solm_rows_ended_total\{reason="(\w+)"\} (\S+)', text, re.M)}
    wrong = [f"{count} replies: {how}" for how, count in seen.items() if how not in ("complete", "refused", "hung up")]
    third = len(sizes) // 3
    early, late = (statistics.median(part) for part in (sizes[third : 2 * third], sizes[2 * third :]))
    growth = late / early - 1
    wrong += [f"{rows:g} rows are left"] if rows else []
    if sum(ended.values()) != (sent := seen["complete"] + seen["hung up"]):
        wrong.append(f"the server says that {ended} ended, and clients saw {sent}")
    wrong += [f"memory grew by {growth:.1%} to the last third of the time"] if growth > asked.growth else []
    results = {"seen": dict(seen), "ended": ended, "bytes": sizes, "wrong": wrong}
    finish("soak", asked, results, [f"{sum(seen.values())} requests, {dict(seen)}; memory {growth:+.2%}", *wrong])
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
