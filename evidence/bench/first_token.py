"""Runs a command and prints, as JSON, seconds until it writes its first byte and the peak of its resident size.

    python first_token.py COMMAND...

A small process of its own: what a system reports as the peak of a child counts its parent's size at the fork.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import time


def main() -> None:
    begun = time.perf_counter()
    process = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE)
    assert process.stdout is not None
    first = os.read(process.stdout.fileno(), 1)
    seconds = time.perf_counter() - begun
    process.stdout.read()
    if process.wait() or not first:
        raise SystemExit(process.returncode or 1)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
    print(json.dumps({"seconds": seconds, "peak_gib": peak / 2**30}))


if __name__ == "__main__":
    main()
