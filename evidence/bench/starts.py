"""How long fresh processes take to their first token, and the peak of their memory: ours and peers'."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from evidence.bench.common import spread
from evidence.bench.peers import Asked, PeerError

FIRST_TOKEN = Path(__file__).with_name("first_token.py")
PROMPT = "Write a function that reverses a list."


def measure(asked: argparse.Namespace, others: dict[str, Asked]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`start_seconds` and `peak_gib`: by precision of ours, and by name of peers. A peer that fails has an `error`.

    Ours start first with an empty cache folder, then with one that has the compiled engine, then `rounds` times with
    what those left there. Peers start `rounds` + 1 times, in turns with ours.
    """
    first: dict[str, dict[str, float]] = {}
    runs: dict[str, tuple[list[str], Path | None]] = {}
    failed: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in asked.precision:
            cold, warm = Path(folder, kind, "cold"), Path(folder, kind, "warm")
            runs[kind] = ours(asked, kind), warm
            try:
                first[kind] = first_token(runs[kind][0], cold)
            except PeerError as error:
                raise SystemExit(f"solm generate: {error}") from error
            warm.mkdir()
            for library in cold.glob("engine-*.so"):
                shutil.copy(library, warm)
        runs |= {name: (peer.first_token(PROMPT), None) for name, peer in others.items()}
        found: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
        for _ in range(asked.rounds + 1):
            for name, run in runs.items():
                if name not in failed:
                    try:
                        found[name].append(first_token(*run))
                    except PeerError as error:
                        failed[name] = {"error": str(error)}
    told = {name: failed.get(name) or _told(taken, first.get(name)) for name, taken in found.items()}
    return {kind: told.pop(kind) for kind in asked.precision}, told


def _told(taken: list[dict[str, float]], cold: dict[str, float] | None) -> dict[str, Any]:
    """What starts took, the first with nothing kept; cold: the one before, without a compiled engine either."""
    seconds = {"first": (cold or taken[0])["seconds"]}
    if cold is not None:
        seconds["first, engine built"] = taken[0]["seconds"]
    peaks = [one["peak_gib"] for one in taken]
    return {
        "start_seconds": {**seconds, "second": spread([one["seconds"] for one in taken[1:]])},
        # Without the compiler's, which may be the largest.
        "peak_gib": {"first": peaks[0], "second": max(peaks[1:])},
    }


def ours(asked: argparse.Namespace, kind: str) -> list[str]:
    """`solm generate` up to its first token."""
    precision, _, cache = kind.partition("+")
    return [
        sys.executable, "-m", "solm.cli", "generate", "--quiet", "--backend", "cpu", "--model", asked.model,
        "--precision", precision, "--kv-cache-dtype", cache or "auto", "--threads", str(torch.get_num_threads()),
        "--max-new-tokens", "1", PROMPT,
    ]  # fmt: skip


def first_token(command: list[str], cache: Path | None = None) -> dict[str, float]:
    """`seconds` from the start of a process to the first byte that it writes, and its `peak_gib` of resident memory.
    cache: the cache folder that it is given. Raises `PeerError` where it fails."""
    environment = os.environ | ({} if cache is None else {"SOLM_CACHE": str(cache)})
    done = subprocess.run([sys.executable, str(FIRST_TOKEN), *command], env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise PeerError(f"it did not start: {lines[-1] if lines else 'it wrote nothing'}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
