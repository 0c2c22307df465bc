"""The tables of the README and the documentation, written from the results in docs/results.

python benchmarks/tables.py            # rewrites what lies between <!-- table: NAME --> and <!-- end -->
python benchmarks/tables.py --check    # changes nothing; exits 1 where a table or a statement differs from the results
"""

import argparse
import re
import sys

import tables_quality  # noqa: F401  (registers its tables)
import tables_speed  # noqa: F401
from cells import TABLES
from published import ROOT
from statements import wrong

MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where a table differs")
    check = parser.parse_args().check
    stale, used = [], set()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text()
        used |= {name for _, name, _ in MARKED.findall(text)}
        fresh = MARKED.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)
        if fresh != text:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.write_text(fresh)
    if unused := TABLES.keys() - used:
        sys.exit(f"no page has the tables {', '.join(sorted(unused))}")
    for path in stale:
        print(f"{path}: {'differs from docs/results; run python benchmarks/tables.py' if check else 'rewritten'}")
    untrue = list(wrong())
    print(*untrue, sep="\n", end="\n" if untrue else "")
    if untrue or (check and stale):
        sys.exit(1)


if __name__ == "__main__":
    main()
