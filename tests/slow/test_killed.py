"""kill -9 at random moments: nothing half-written is ever seen, and the end is what it would have been."""

import json
import random
import shutil

from helpers.commands import everything_is_readable, start
from helpers.texts import FOX as TEXT

KILLS = 17
EVAL = ["--space", "joint-8", "--budgets", "0.6,0.7,0.8", "--texts", "24", "--context", "90", "--length", "12",
        "--dtype", "float32"]  # fmt: skip


def test_killed_at_random_moments_it_always_goes_on(tiny_folder, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT * 3)
    arguments = ["eval", "--model", str(tiny_folder), "--data", "text.txt", "--out", "out/result.json", *EVAL]

    def fresh(name):
        folder = tmp_path / name
        (folder / "out").mkdir(parents=True)
        shutil.copy(tmp_path / "text.txt", folder)
        return folder

    whole = fresh("whole")
    reference = start(arguments, whole)
    reference.join(120)
    assert reference.exitcode == 0
    rng, kills, folder, rounds = random.Random(0), 0, fresh("killed-0"), 0
    while kills < KILLS:
        process = start(arguments, folder)
        process.join(rng.uniform(0.3, 2.5))
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
            everything_is_readable(folder / "out")
            continue
        assert process.exitcode == 0
        rounds += 1
        folder = fresh(f"killed-{rounds}")
    last = start(arguments, folder)
    last.join(120)
    assert last.exitcode == 0
    first, second = (json.loads((root / "out/result.json").read_text())["points"] for root in (whole, folder))
    assert first == second
