"""Runs one program that nobody has read. `sandbox` starts it inside of bubblewrap, as ``python -I -S -B``.

Standard input is JSON: `program`, `limits` by the names of `resource`, `wall` seconds, and `secret`. Standard output
gets `CONFINED` before the program runs, and the secret once it ran to its last line.
"""

import json
import os
import resource
import signal
import sys

CONFINED = "c"
NOBODY = 65534


def main() -> None:
    asked = json.load(sys.stdin)
    if os.getuid() == 0:  # whom no limit on processes holds
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    for name, limit in asked["limits"].items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit + (name == "CPU")))  # SIGXCPU comes first
    os.environ.clear()
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.closerange(kept + 1, 1024)
    signal.alarm(asked["wall"])
    try:
        os.write(kept, CONFINED.encode())
        exec(compile(asked["program"], "program", "exec", dont_inherit=True), {"__name__": "__main__"})
        os.write(kept, asked["secret"].encode())
    finally:
        os._exit(0)  # what counts is the secret: a program may end with any code


if __name__ == "__main__":
    main()
