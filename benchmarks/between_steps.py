"""Where a server's time goes while all its rows decode and stream: decode steps, prompts, and what lies between them.

    python benchmarks/between_steps.py --model FILE.gguf

As many clients as rows stream long replies. Once all rows decode, the server's own counters are read at both ends of a
stretch of --seconds. What is neither a step nor the reading of a prompt is Python, in parts that `timed_server.py`
times; the rest is the loop itself, and waiting for the threads of the HTTP server.
"""

import asyncio
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx

from clients import DENSE, LIMITS, WHOLE, Load, some_texts
from common import finish, parser
from server_process import free_port, on_cpu, server
from timed_server import PARTS

_SETTLED = 1.0
"""Seconds after the last row has begun."""
_COUNTERS = {"steps": "solm_step_seconds_sum", "prompts": "solm_prefill_seconds_sum"} | {
    part: f'bench_seconds_total{{part="{part}"}}' for part in PARTS
}


async def counters(client: httpx.AsyncClient, address: str) -> dict[str, float]:
    """Seconds of steps and prompts so far, the number of steps, rows that decode, and when that was."""
    loop = asyncio.get_running_loop()
    text = (await client.get(f"{address}/metrics")).text
    names = (*_COUNTERS.values(), "solm_step_seconds_count", "solm_rows_running")
    read = {name: float(re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)[0]) for name in names}
    return read | {"at": loop.time()}


async def stretch(address: str, options: Any, texts: list[str]) -> dict[str, float]:
    """What the counters say of a stretch in which all rows decode."""
    load = Load(address, "served", DENSE | WHOLE, options.tokens)
    running = asyncio.create_task(load.run(options.rows, 1, texts))
    async with httpx.AsyncClient(limits=LIMITS, timeout=60) as client:
        while (await counters(client, address))["solm_rows_running"] < options.rows:
            await asyncio.sleep(0.1)
        await asyncio.sleep(_SETTLED)
        first = await counters(client, address)
        await asyncio.sleep(options.seconds)
        last = await counters(client, address)
    await running
    if min(first["solm_rows_running"], last["solm_rows_running"]) < options.rows:
        raise SystemExit("some replies ended during the stretch: raise --tokens or lower --seconds")
    seconds, steps = last["at"] - first["at"], last["solm_step_seconds_count"] - first["solm_step_seconds_count"]
    shares = {what: (last[name] - first[name]) / seconds for what, name in _COUNTERS.items()}
    parts = {part: shares.pop(part) for part in PARTS}
    between = 1 - sum(shares.values())
    return {
        **shares, "between": between, "parts": parts | {"the rest": between - sum(parts.values())}, "seconds": seconds,
        "steps_per_second": steps / seconds, "tokens_per_second": options.rows * steps / seconds,
    }  # fmt: skip


def measured(options: Any) -> dict[str, Any]:
    """Rounds one after another at one server, and their median by share between steps."""
    texts = some_texts(options.model, options.rows * (options.rounds + 1), options.context)
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        plain = on_cpu(options, "--max-rows", str(options.rows))
        command = [sys.executable, str(Path(__file__).with_name("timed_server.py")), *plain[3:]]
        with server(command, free_port(), Path(folder) / "server.log") as one:
            for number in range(options.rounds + 1):
                part = texts[number * options.rows : (number + 1) * options.rows]
                rounds.append(asyncio.run(stretch(one.address, options, part)))
    del rounds[0]  # which warms up
    return {"rounds": rounds, "median": sorted(rounds, key=lambda found: found["between"])[len(rounds) // 2]}


def main() -> None:
    options = parser(__doc__, "rounds")
    options.add_argument("--rows", type=int, default=16, help="replies that decode together")
    options.add_argument("--tokens", type=int, default=512, help="tokens of a reply")
    options.add_argument("--context", type=int, default=64, help="tokens of a prompt, without the chat template's")
    options.add_argument("--seconds", type=float, default=5.0, help="of a stretch")
    options.add_argument("--serve", default="", help="more options of solm serve, as one text")
    asked = options.parse_args()
    found = measured(asked)
    told = "{steps:.1%} steps, {prompts:.1%} prompts, {between:.1%} between them; {tokens_per_second:.0f} tokens/s"
    finish("between-steps", asked, found, [told.format(**one) for one in found["rounds"]])


if __name__ == "__main__":
    main()
