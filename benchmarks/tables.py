"""The tables and figures of the README and the documentation, written from the results in docs/results.

python benchmarks/tables.py            # rewrites figures, and what lies between <!-- table: NAME --> and <!-- end -->
python benchmarks/tables.py --check    # changes nothing; exits 1 where one of them, or a statement, says otherwise
"""

import argparse
import re
import sys

import statements_bits  # noqa: F401
import statements_divergences  # noqa: F401
import statements_ladder  # noqa: F401  (registers its statements)
import statements_larger  # noqa: F401
import statements_paper  # noqa: F401
import statements_serving  # noqa: F401
import statements_tasks  # noqa: F401
import statements_zen5  # noqa: F401
import tables_aims  # noqa: F401
import tables_context  # noqa: F401
import tables_features  # noqa: F401
import tables_field  # noqa: F401
import tables_fits  # noqa: F401
import tables_ladder  # noqa: F401
import tables_quality  # noqa: F401  (registers its tables)
import tables_replies  # noqa: F401
import tables_serving  # noqa: F401
import tables_speed  # noqa: F401
import tables_tasks  # noqa: F401
import tables_thresholds  # noqa: F401
import tables_variants  # noqa: F401
from cells import TABLES
from figures import FIGURES
from published import ROOT
from statements import wrong

MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where a table differs")
    check = parser.parse_args().check
    fresh, used = {}, set()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text()
        used |= {name for _, name, _ in MARKED.findall(text)}
        fresh[path] = MARKED.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)
    if unused := TABLES.keys() - used:
        sys.exit(f"no page has the tables {', '.join(sorted(unused))}")
    for name, draw in FIGURES.items():
        fresh[ROOT / "docs" / "figures" / f"{name}.svg"] = draw()
    stale = [path for path, text in fresh.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        name = path.relative_to(ROOT)
        print(f"{name}: {'differs from docs/results; run python benchmarks/tables.py' if check else 'rewritten'}")
        if not check:
            path.write_text(fresh[path])
    untrue = list(wrong())
    print(*untrue, sep="\n", end="\n" if untrue else "")
    if untrue or (check and stale):
        sys.exit(1)


if __name__ == "__main__":
    main()
