"""Checks the ceilings in CONTRIBUTING.md: lines and files per package, and parameters per function."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROW = re.compile(r"^\| `([^`]+)` \| ([\d,]+) \| ([\d,]+|) ?\|")
MOST_PARAMETERS, MOST_OF_A_VERB = 8, 20
VERBS = ("solm.cli.", "solm.paper.__main__")
FREE = {"solm.runtime.load.load", "solm.evaluation.lm_eval.ControlledLM.__init__"}
"""Functions whose parameters are the interface of something else: options of `solm.load`, and of lm-eval's models."""


def matching(pattern: str) -> list[Path]:
    """The tracked files of one row: git's own patterns, separated by spaces; `!` leaves out."""
    wanted = [f":(glob){part}" if part[0] != "!" else f":(exclude,glob){part[1:]}" for part in pattern.split()]
    listed = subprocess.run(["git", "ls-files", "-z", *wanted], cwd=ROOT, capture_output=True, check=True, text=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def over_the_ceilings() -> list[str]:
    """What has more lines or files than its row of the table allows. Raises `ValueError` where there is no table."""
    rows = [found for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if (found := ROW.match(line))]
    if not rows:
        raise ValueError("CONTRIBUTING.md has no table of ceilings")
    problems = []
    for row in rows:
        pattern, lines, files = row[1], *(int(number.replace(",", "") or 0) for number in row.groups()[1:])
        held = matching(pattern)
        count = sum(len(path.read_bytes().splitlines()) for path in held)
        print(f"{pattern:60} {count:7,} of {lines:7,} lines {len(held):5} files")
        if count > lines:
            problems.append(f"{pattern}: {count:,} lines, at most {lines:,}; remove as much as you add")
        if files and len(held) > files:
            problems.append(f"{pattern}: {len(held)} files, at most {files}")
    return problems


def long_signatures() -> list[str]:
    """Functions of the package with too many parameters. Kernels of Triton take what they address."""
    problems = []
    for path in matching("src/**/*.py !src/solm/backends/torch/triton/**"):
        module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        most = MOST_OF_A_VERB if module.startswith(VERBS) else MOST_PARAMETERS
        for owner, function in functions(ast.parse(path.read_text())):
            given = function.args
            count = len([*given.posonlyargs, *given.args, *given.kwonlyargs])
            count -= bool(owner) and given.args[:1] != [] and given.args[0].arg in ("self", "cls")
            name = ".".join(filter(None, (module, owner, function.name)))
            if count > most and name not in FREE:
                problems.append(f"{name}: {count} parameters, at most {most}")
    return problems


def functions(tree: ast.AST, owner: str = "") -> "list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]":
    """All functions below a node, each with the class that it is a method of."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append((owner, node))
        found.extend(functions(node, node.name if isinstance(node, ast.ClassDef) else ""))
    return found


if __name__ == "__main__":
    problems = [*over_the_ceilings(), *long_signatures()]
    print(*problems, sep="\n", file=sys.stderr)
    sys.exit(bool(problems))
