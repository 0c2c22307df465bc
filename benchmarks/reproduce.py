"""The paper's figures: a command for each, printed or run (arXiv 2605.10875).

    python benchmarks/reproduce.py --data DATA                     # print the commands
    python benchmarks/reproduce.py --data DATA --run --out runs/reproduce --only perplexity,kv-drift

DATA is a folder with your own held-out text: wiki.txt, tuning.txt, poems.txt, logs.txt, and eval/ with tasks' files.
For another model, give --model and --policy; its policy comes from `solm train --model MODEL --data ... --out FOLDER`.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

COMMANDS = {
    "perplexity": "eval {joint} --data {data}/wiki.txt --budgets 0.45,0.55,0.65,0.75 --oracle "
    "--out {out}/eval.json --plot {out}/eval.png",
    "random-search": "eval {joint} --data {data}/wiki.txt --budgets 0.5,0.6,0.7 --texts 112 --length 16 --trials 500 "
    "--out {out}/random.json",
    "baselines": "eval {policy} --space attention-fine --data {data}/wiki.txt --budgets 0.735,0.77 "
    "--baselines constant,entropy,drift --out {out}/attention.json",
    "thresholds": "eval {policy} --space mlp-fine --data {data}/wiki.txt --budgets 0.82,0.855 "
    "--tuning {data}/tuning.txt --baselines constant,teal --out {out}/mlp.json",
    "tasks": "tasks {joint} --tasks mmlu,arc_easy,hellaswag --fewshot 5 --data {data}/eval --out {out}/tasks.json",
    "retrieval": "tasks {policy} --space attention-fine --tasks niah_multikey --budgets 0.75,0.85 --data {data}/eval "
    "--out {out}/retrieval.json",
    "kv-drift": "study kv-drift --model {model} --data {data}/wiki.txt --out {out}/kv-drift.json "
    "--plot {out}/kv-drift.svg",
    "domains": "study domains {joint} --data {data}/poems.txt,{data}/logs.txt,pydoc --out {out}/domains.json "
    "--plot {out}/domains.svg",
    "free-running": "study free-running {policy} --data {data}/wiki.txt --out {out}/free-running.json",
    # Adherence to budgets, actions by position and token class, coloured texts and violins are on this page.
    "report": "report {out}/eval.json --out {out}/report.html",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--policy", default="builtin:smollm2-135m")
    parser.add_argument("--only", default=",".join(COMMANDS), help=f"of {', '.join(COMMANDS)}")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--run", action="store_true", help="run the commands; by default they are printed")
    parser.add_argument("rest", nargs="*", help="after --: further options for every command, such as --texts 8")
    options = parser.parse_args()
    policy = f"--model {shlex.quote(options.model)} --policy {shlex.quote(options.policy)}"
    places = {
        "policy": policy, "joint": f"{policy} --space joint-27", "model": shlex.quote(options.model),
        "data": shlex.quote(str(options.data)), "out": shlex.quote(str(options.out)),
    }  # fmt: skip
    for name in options.only.split(","):
        if name not in COMMANDS:
            parser.error(f"unknown figure {name!r}; choose among {', '.join(COMMANDS)}")
        command = [*shlex.split(COMMANDS[name].format(**places)), *options.rest]
        print("solm", shlex.join(command), flush=True)
        if options.run:
            options.out.mkdir(parents=True, exist_ok=True)
            done = subprocess.run([sys.executable, "-m", "solm.cli", *command])
            if done.returncode:
                sys.exit(done.returncode)


if __name__ == "__main__":
    main()
