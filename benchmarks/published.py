"""Reading the published results: what each file in docs/results is called, and where in it a number lies.

Tables and figures read results through this module and `published_speed` alone, so that a change of a file's layout is
a change here.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
ARMS = {
    "policy": "policy", "allocated": "allocated", "uniform": "uniform", "tuned": "tuned", "constant": "constant",
    "random": "random", "oracle": "oracle", "token table": "token-table", "best of 500": "best-of-500-estimated",
    "top-p": "top-p", "thresholds": "teal",
}  # fmt: skip
"""The arms of a comparison, as the documentation calls them, and their keys in the results."""


FIT_MINUTES = (5, 15, 45)
"""Of the fits in docs/results/fitted-minutes."""


@cache
def read(name: str) -> Any:
    """What docs/results/`name`.json found."""
    whole = json.loads((RESULTS / f"{name}.json").read_text())
    return whole.get("results", whole)


@cache
def settings(name: str) -> Any:
    """How docs/results/`name`.json was made."""
    return json.loads((RESULTS / f"{name}.json").read_text())["settings"]


def processor(name: str) -> str:
    """What docs/results/`name`.json was made on, as pages call it."""
    told = json.loads((RESULTS / f"{name}.json").read_text())["environment"]["machine"]["processor"]
    return str(told).replace("(family 26, model 2)", "(Zen 5)").replace("(family 25, model 17)", "(Zen 4)")


def measured(name: str) -> bool:
    """Whether there is a docs/results/`name`.json. Those that a table asks for may come later."""
    return (RESULTS / f"{name}.json").exists()


@dataclass(frozen=True)
class Difference:
    """A paired difference with its 95 % interval, in nats unless said otherwise."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, found: dict[str, float]) -> "Difference":
        return cls(found["value"], found["low"], found["high"])


# Comparisons at equal compute


@dataclass(frozen=True)
class Comparison:
    """One budget: per arm nats per token above dense, and policy minus arm."""

    space: str
    net_keep: float
    above_dense: dict[str, float]
    policy_minus: dict[str, Difference]


def comparisons(folder: str, space: str) -> list[Comparison]:
    """The budgets of docs/results/`folder`/`space`.json, in the order of the file."""
    points = read(f"{folder}/{space}")["points"]
    dense = next(point["nats"] for point in points if point["arm"] == "dense")
    found: dict[float, Comparison] = {}
    names = {key: arm for arm, key in ARMS.items()}
    for point in points:
        if point["arm"] in names and point["arm"] != "dense":
            row = found.setdefault(point["budget"], Comparison(space, point["budget"], {}, {}))
            arm = names[point["arm"]]
            row.above_dense[arm] = point["nats"] - dense
            if point["difference"] is not None:
                row.policy_minus[arm] = Difference.of(point["difference"])
    return list(found.values())


# Allocation, long contexts, tasks, serving, training


def allocation_text() -> dict[int, list[dict[str, Any]]]:
    """Per context the settings measured on text; each has attention, mlp, and per way of dealing out loss and share."""
    return {int(context): rows for context, rows in read("allocation")["text"].items()}


def allocation_retrieval() -> dict[str, list[dict[str, Any]]]:
    return read("allocation")["retrieval"]


ALLOCATIONS = {"uniform": "uniform", "by layers": "layers", "by KV heads": "heads"}
HEADS_MINUS_UNIFORM = "heads_minus_uniform"


def books(name: str = "long-context") -> dict[int, dict[str, dict[str, Any]]]:
    """Per context the arms of the attention axis, such as `book_arm`, each with share, bytes and minus_dense, and where
    they were timed with milliseconds."""
    return {int(context): arms for context, arms in read(name)["text"].items()}


def retrieval(name: str = "long-context") -> dict[str, dict[str, dict[str, Any]]]:
    return read(name)["retrieval"]


def book_arm(arm: str, share: float) -> str:
    return f"{'constant' if arm == 'allocated' else arm} {share:g}"


TASKS = ("arc_easy", "arc_challenge", "openbookqa", "winogrande", "lambada_openai", "mmlu", "piqa", "hellaswag")


def task_points(task: str) -> list[dict[str, Any]]:
    return read(f"tasks/{task}")["points"]


def servers() -> dict[str, dict[str, dict[str, float]]]:
    """Per server, per number of clients, what was measured."""
    found: dict[str, dict[str, dict[str, float]]] = read("serve")["servers"]
    if "budget" in settings("serve"):
        return found
    return {name.replace(" at ", " at keep="): runs for name, runs in found.items()}  # a file in which names lack it


SERVERS = {
    "transformers serve, bfloat16": "transformers",
    "solm, torch backend, bfloat16, dense": "torch",
    "solm, cpu backend, bfloat16, dense": "cpu bfloat16",
    "solm, cpu backend, int8, dense": "cpu int8",
    "solm, cpu backend, int8, policy at net keep 0.6": "cpu int8 at keep=0.6",
}


def governed() -> tuple[float, dict[str, dict[str, float]]]:
    """The objective in milliseconds, and per way of governing what was measured."""
    found = read("governor")
    return found["objective_ms"], found["servers"]


def shedding() -> dict[str, Any] | None:
    """What became of requests beyond capacity; None where it was not measured to its end."""
    found = read("shedding-0.5b") if (RESULTS / "shedding-0.5b.json").exists() else {}
    return found if found.get("complete") else None


def constrained_batch() -> dict[str, Any] | None:
    """What a row under a grammar costs the others of its batch; None where it was not measured."""
    return read("constrained-0.5b") if (RESULTS / "constrained-0.5b.json").exists() else None


def learning() -> list[dict[str, Any]]:
    return read("learning")["points"]


def free_running() -> list[dict[str, Any]]:
    return read("free-running")["points"]


def kl_difference(point: dict[str, Any], arm: str) -> Difference:
    """KL from dense of the policy minus that of `arm`, of a point of `free_running`."""
    return Difference.of(point[f"policy_minus_{arm}_kl"])


def graded(size: str) -> dict[str, Any] | None:
    """By kind of problem `problems`, a number, and `points`, which `solm study graded` found for a model; None where it
    has not run."""
    kinds: dict[str, Any] = {}
    for name in graded_files(size):
        kinds |= read(name)["kinds"]
    return kinds or None


def graded_files(size: str) -> list[str]:
    """The results of a model's graded replies: one of all kinds, and of kinds that were graded again."""
    names = [f"graded-{size}", f"graded-{size}-gsm8k", f"graded-{size}-humaneval", f"graded-{size}-chat"]
    return [name for name in names if measured(name)]


def adherence() -> list[dict[str, Any]]:
    return read("adherence")["points"]


def best_of() -> list[dict[str, Any]]:
    return read("best-of")["points"]


def kv_cache() -> list[dict[str, Any]]:
    return read("kv-cache")["points"]


def policy_cost() -> list[dict[str, Any]]:
    """Per precision and action space: milliseconds of a dense step, what decisions add, and that as a share."""
    return read("policy-cost")["cpu"]


def rollouts(dtype: str) -> dict[str, float]:
    """Median token-steps per second of the ways to train."""
    found = read(f"rollout-{dtype}")
    return {
        "random schedules": found["samples_per_second"]["default"]["median"],
        **{f"policy gradient, {texts}": speed["median"] for texts, speed in found["rollouts_per_second"].items()},
    }


def tasks_speed() -> dict[str, Any]:
    return read("tasks-speed")


def nested() -> list[dict[str, Any]]:
    [found] = read("dial-nested")["contexts"].values()
    return found["settings"]
