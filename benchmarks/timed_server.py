"""`solm serve` whose metrics also say where the decoding thread's time between steps goes.

python benchmarks/timed_server.py serve --model FILE.gguf ...     # started by between_steps.py
"""

import functools
import sys
import time
from typing import Any

PARTS = {
    "sampling": (("solm.runtime.sampling", "Sampler", "possible"), ("solm.runtime.sampling", "Sampler", "choose")),
    "text": (("solm.runtime.text", "TextStream", "push"),),
    "cost": (("solm.runtime.controlled", "ControlledModel", "step_cost"),),
    "events": (("solm.serving.rows", "Row", "_tell"), ("solm.serving.outbox", "Outbox", "send")),
    "budgets": (("solm.serving.targets", "Targets", "set"), ("solm.serving.governor", "Governor", "stepped")),
    "metrics": (("solm.serving.scheduler", "Scheduler", "_measure"),),
}
"""Methods by what they are for. None of them calls another one."""


def timed(owner: type, name: str, part: Any) -> None:
    """Let a method count its seconds in a counter."""
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def outer(*args: Any, **named: Any) -> Any:
        begun = time.perf_counter()
        found = inner(*args, **named)
        part.inc(time.perf_counter() - begun)
        return found

    setattr(owner, name, outer)


def main() -> None:
    from prometheus_client import Counter

    from solm.serving.metrics import Metrics

    spent = Counter("bench_seconds", "Seconds between steps.", ["part"], registry=None)
    for part, methods in PARTS.items():
        for module, owner, name in methods:
            __import__(module)
            timed(getattr(sys.modules[module], owner), name, spent.labels(part))
    begin = Metrics.__init__

    def registered(self: Metrics) -> None:
        begin(self)
        self.registry.register(spent)

    Metrics.__init__ = registered  # type: ignore[method-assign]
    from solm.cli.main import main as solm

    solm()


if __name__ == "__main__":
    main()
