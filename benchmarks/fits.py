"""How long fits of one model take, phase by phase, and how much memory they hold.

    python benchmarks/fits.py --model FILE.gguf --data wiki,code --minutes 5,15,45 --folder fits --out fits.json

Runs `solm fit` once for each number of minutes, into FOLDER/MINUTES. A fit that is there already is not made again; an
interrupted one continues.
"""

import subprocess
import sys
from pathlib import Path

from common import finish, numbers, parser
from solm.core.files import read_json
from solm.fitting.folder import MANIFEST

_LOAD = """
import resource, sys, solm
lm = solm.load(sys.argv[1], backend="cpu")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""
"""The most memory, in GiB, of a process that only loads the model."""


def main() -> int:
    options_parser = parser(__doc__)
    options_parser.add_argument("--data", required=True, help="text, as for `solm fit`")
    options_parser.add_argument("--minutes", type=numbers, default=[5.0, 15.0, 45.0], help="of every fit")
    options_parser.add_argument("--folder", type=Path, required=True, help="where the fits' folders go")
    options = options_parser.parse_args()
    fits = []
    for minutes in options.minutes:
        out = options.folder / f"{minutes:g}"
        given = ["--data", options.data, "--minutes", f"{minutes:g}", "--out", str(out)]
        if code := _run([sys.executable, "-m", "solm.cli", "fit", options.model, *given]):
            return code
        made = read_json(out / MANIFEST)
        fits.append({"minutes": minutes, "seconds": made["seconds"], "peak_gib": made["peak_gib"]})
    loaded = subprocess.run([sys.executable, "-c", _LOAD, options.model], check=True, capture_output=True, text=True)
    results = {"fits": fits, "loaded_gib": round(float(loaded.stdout), 2)}
    lines = [
        f"{fit['minutes']:g} minutes: took {sum(fit['seconds'].values()) / 60:.1f}, held {fit['peak_gib']} GiB, where "
        f"the loaded model holds {results['loaded_gib']}"
        for fit in fits
    ]
    finish("fits", options, results, lines)
    return 0


def _run(command: list[str]) -> int:
    """The exit code of a command. At Ctrl-C, which it gets too, it has the time to save what it has measured."""
    with subprocess.Popen(command) as started:
        while True:
            try:
                return started.wait()
            except KeyboardInterrupt:
                continue


if __name__ == "__main__":
    sys.exit(main())
