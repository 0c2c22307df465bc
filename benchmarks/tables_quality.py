"""The tables about quality at equal compute."""

from collections.abc import Sequence
from typing import Any

import published as of
from cells import NONE, interval, markdown, signed, table
from published import Difference


def compared(folder: str, spaces: Sequence[str], arms: Sequence[str], against: Sequence[str]) -> str:
    rows = []
    for space in spaces:
        for found in of.comparisons(folder, space):
            rows.append(
                [
                    f"{space}, {found.net_keep:g}",
                    *(signed(found.above_dense[arm]) if arm in found.above_dense else NONE for arm in arms),
                    *(interval(found.policy_minus[arm]) if arm in found.policy_minus else NONE for arm in against),
                ]
            )
    return markdown(("Space, net keep", *arms, *(f"policy − {arm}" for arm in against)), rows)


@table
def baselines() -> str:
    against = ("allocated", "uniform", "tuned", "best of 500")
    return compared("policies", ["fine"], ("policy", *against, "token table"), against)


@table
def grids() -> str:
    against = ("allocated", "uniform", "tuned", "best of 500")
    spaces = ("attention-fine", "mlp-fine", "bits-fine", "joint-8", "joint-27", "joint-336")
    return compared("policies", spaces, ("policy", "constant"), against)


@table
def fitted() -> str:
    return fitted_policy("0.5b")


@table
def fitted_larger() -> str:
    """The same of a larger model, once it was measured."""
    return fitted_policy("1.5b") if of.measured("fitted-1.5b") else ""


def fitted_policy(size: str) -> str:
    """What a policy of `solm fit` loses at equal milliseconds, and against what."""
    points = of.read(f"fitted-{size}")["points"]
    dense, arms = points[0], ("policy", "allocated", "teal", "constant", "uniform")
    rows = []
    for budget in sorted({point["budget"] for point in points if point["arm"] == "policy"}):
        found = {point["arm"]: point for point in points if point["budget"] == budget}
        ours = found["policy"]
        rows.append(
            [f"{budget:.3f}", f"{dense['step_ms'] / ours['step_ms']:.2f}×", f"{ours['axes']['attention']:.2f}",
             f"{ours['axes']['mlp']:.2f}", *(signed(found[arm]["nats"] - dense["nats"]) for arm in arms),
             *(interval(Difference.of(found[arm]["difference"])) for arm in arms[1:])]
        )  # fmt: skip
    names = [{"teal": "thresholds"}.get(arm, arm) for arm in arms]
    against = (f"policy − {name}" for name in names[1:])
    return markdown(("Share of the dense step's time", "speed", "pages", "MLP", *names, *against), rows)


@table
def rules() -> str:
    return compared("rules", ("attention-fine", "mlp-fine"), ("policy", "constant", "top-p", "thresholds"),
                    ("constant", "top-p", "thresholds"))  # fmt: skip


@table
def oracle() -> str:
    """The share of an oracle's gain over constant schedules that the policy gets."""
    rows = []
    for space in ("joint-27", "mlp-fine"):
        for found in of.comparisons("oracle", space):
            lost = found.above_dense
            shares = [(lost[arm] - lost["policy"]) / (lost[arm] - lost["oracle"]) for arm in ("allocated", "uniform")]
            rows.append(
                [f"{space}, {found.net_keep:g}",
                 *(signed(lost[arm]) for arm in ("uniform", "allocated", "policy", "oracle")),
                 *(f"{100 * share:.0f} %" for share in shares)]
            )  # fmt: skip
    return markdown(
        ("Space, net keep", "uniform", "allocated", "policy", "oracle", "of allocated → oracle", "of uniform → oracle"),
        rows,
    )


@table
def allocation() -> str:
    """Loss of the same share, by how it is divided among layers and KV heads."""

    def row(name: str, found: dict[str, Any]) -> list[str]:
        losses = [f"{found[key]['loss']:.3f}" for key in of.ALLOCATIONS.values()]
        return [name, *losses, interval(Difference.of(found[of.HEADS_MINUS_UNIFORM]))]

    rows = []
    for context in (1024, 4096):
        for found in of.allocation_text()[context]:
            if (found["attention"], found["mlp"]) in ((0.1, 1), (0.2, 1), (1, 0.5), (1, 0.6), (0.2, 0.6)):
                rows.append(row(f"text after {context:,}: pages {found['attention']:g}, MLP {found['mlp']:g}", found))
    for name, label in (("longeval_lines", "line retrieval, whole answer"), ("niah_multikey", "needle, whole answer")):
        rows += [row(f"{label}: pages {found['attention']:g}", found) for found in of.allocation_retrieval()[name]]
    return markdown(("Nats above dense", *of.ALLOCATIONS, "by KV heads − uniform"), rows)


@table
def long_context() -> str:
    rows = []
    for context, arms in of.books().items():
        cells = []
        for share in (0.3, 0.2, 0.1):
            uniform, allocated = (arms[of.book_arm(arm, share)] for arm in ("uniform", "allocated"))
            cells.append(f"{uniform['minus_dense']['value']:+.3f} → {allocated['minus_dense']['value']:+.3f}")
        policy = interval(Difference.of(arms[of.book_arm("policy", 0.2)]["minus_constant"]))
        rows.append([f"{context:,}", *cells, f"{arms[of.book_arm('allocated', 0.2)]['bytes']:.2f}", policy])
    head = [f"pages {share:g}: uniform → allocated" for share in (0.3, 0.2, 0.1)]
    return markdown(("Context", *head, "bytes at 0.2", "policy − constant at 0.2"), rows)


@table
def retrieval() -> str:
    rows = []
    for name, label in (("longeval_lines", "lines"), ("niah_multikey", "needles")):
        arms = of.retrieval()[name]
        nats = {
            arm: [f"{-arms[of.book_arm(arm, share)]['nats']:.1f}" for share in (0.3, 0.2, 0.1)]
            for arm in ("uniform", "allocated")
        }
        rows.append(
            [label, f"{-arms[of.book_arm('allocated', 1)]['nats']:.1f}", *(", ".join(nats[arm]) for arm in nats)]
        )
    return markdown(
        ("Log-probability of the answer", "dense", "uniform at 0.3, 0.2, 0.1", "allocated at 0.3, 0.2, 0.1"), rows
    )


@table
def long_context_larger() -> str:
    """The same of a larger model, with milliseconds, once it was measured."""
    name, shares = "long-context-0.5b", (0.3, 0.2, 0.1)
    if not of.measured(name):
        return ""
    rows = []
    for context, arms in of.books(name).items():
        cells = [f"{arms[of.book_arm('allocated', 1)]['milliseconds']:.1f}"]
        for share in shares:
            uniform, allocated = (arms[of.book_arm(arm, share)] for arm in ("uniform", "allocated"))
            loss = f"{uniform['minus_dense']['value']:+.3f} → {allocated['minus_dense']['value']:+.3f}"
            cells.append(f"{loss}, {allocated['milliseconds']:.1f} ms")
        policy = arms[of.book_arm("policy", 0.2)]
        cells += [f"{policy['minus_dense']['value']:+.3f}, {policy['milliseconds']:.1f} ms"]
        rows.append([f"{context:,}", *cells, interval(Difference.of(policy["minus_constant"]))])
    for task, label in (("longeval_lines", "lines"), ("niah_multikey", "needles")):
        if arms := of.retrieval(name).get(task, {}):
            dense, *pairs = (
                tuple(-arms[of.book_arm(arm, share)]["nats"] for arm in which)
                for share, which in ((1, ("allocated",)), *((share, ("uniform", "allocated")) for share in shares))
            )
            cells = [f"{dense[0]:.1f}", *(f"{one:.1f} → {other:.1f}" for one, other in pairs)]
            policy = arms[of.book_arm("policy", 0.2)]
            found = interval(Difference.of(policy["minus_constant"]), 1)
            rows.append([f"{label}: log-probability", *cells, f"{-policy['nats']:.1f}", found])
    head = [f"pages {share:g}: uniform → allocated" for share in shares]
    told = markdown(
        ("Context", "dense", *head, "policy at 0.2", "policy − constant at 0.2"), rows,
    )  # fmt: skip
    return (
        "The same of Qwen2.5-Coder-0.5B with the policy that ships for it, on the cpu backend. Dense: milliseconds of "
        "a step; others: nats per token above dense, and milliseconds. Steps of a text were timed arm after arm. The "
        f"last rows are log-probabilities of whole answers.\n\n{told}\n`results/{name}.json`.\n"
    )


@table
def learning() -> str:
    names = {"values": "regression on counterfactual schedules (default)",
             "grpo": "policy gradient, with our budget prior",
             "grpo-paper": "policy gradient, as in the paper"}  # fmt: skip
    minutes = sorted({point["limit"] for point in of.learning()})
    by = {(point["method"], point["limit"]): point for point in of.learning()}
    rows = [
        [label, *(interval(Difference.of(by[key, limit]["difference"])) for limit in minutes)]
        for key, label in names.items()
    ]
    return markdown(("Policy − allocated", *(f"{limit:g} minutes" for limit in minutes)), rows)


@table
def free_running() -> str:
    rows = []
    for point in of.free_running():
        kl = {arm: point["arms"][of.ARMS[arm]]["kl"] for arm in ("policy", "allocated", "uniform")}
        minus = [of.kl_difference(point, arm) for arm in ("allocated", "uniform")]
        rows.append(
            [f"{point['budget']:g}", *(f"{value:.4f}" for value in kl.values()), *(interval(d, 4) for d in minus)]
        )
    return markdown(("Net keep", "policy", "allocated", "uniform", "policy − allocated", "policy − uniform"), rows)


@table
def graded() -> str:
    """A chapter for every model whose replies were graded; nothing before one was."""
    chapters = []
    for size, model in (("0.5b", "Qwen2.5-Coder-0.5B"), ("1.5b", "Qwen2.5-Coder-1.5B")):
        kinds = of.graded(size)
        if kinds is None:
            continue
        count = {kind: asked["problems"] for kind, asked in kinds.items()}
        names = {"gsm8k": "GSM8K", "humaneval": "HumanEval", "chat": "chat"}
        asked = ", ".join(f"{names[kind]}: {number}" for kind, number in count.items())
        parts = [
            f"### Replies that are graded, {model}",
            f"Greedy replies, zero-shot, through the chat template ({asked}). Baselines get, problem by problem, what "
            "the policy realised; milliseconds are those of the policy's step times. Intervals are over problems.",
        ]
        if solved := [kind for kind in ("gsm8k", "humaneval") if kind in kinds]:
            parts.append(_solved({names[kind]: kinds[kind]["points"] for kind in solved}).rstrip())
        if "chat" in kinds:
            parts += [
                "Chat replies beside the dense model's first 64 tokens: the part before the first other token, and KL "
                "from the dense model's predictions along its reply, nats per token.",
                _followed(kinds["chat"]["points"]).rstrip(),
            ]
        chapters.append("\n\n".join([*parts, f"`results/graded-{size}.json`, by `solm study graded`.\n"]))
    return "\n".join(["", *chapters]) if chapters else ""


def _budgets(points: list[dict[str, Any]]) -> list[dict[str, dict[str, Any]]]:
    """Per budget the points by arm, dense among them."""
    [dense] = [point for point in points if point["arm"] == "dense"]
    found: dict[float, dict[str, dict[str, Any]]] = {}
    for point in points:
        if point["arm"] != "dense":
            found.setdefault(point["budget"], {"dense": dense})[point["arm"]] = point
    return list(found.values())


def _against(by: dict[str, dict[str, Any]]) -> list[str]:
    return [arm for arm in by if arm not in ("dense", "policy")]


def _solved(kinds: dict[str, list[dict[str, Any]]]) -> str:
    rows, head = [], []
    for kind, points in kinds.items():
        for by in _budgets(points):
            arms, ours = _against(by), by["policy"]
            minus = [ours["policy_minus_dense"], *(by[arm]["policy_minus"] for arm in arms)]
            head = ["dense", "policy", *arms, *(f"policy − {arm}" for arm in ("dense", *arms))]
            rows.append(
                [f"{kind}, {ours['budget']:g}", f"{by['dense']['spent']['ms']:.1f}", f"{ours['spent']['ms']:.1f}",
                 *(f"{100 * by[arm]['solved']:.0f} %" for arm in ("dense", "policy", *arms)),
                 *(interval(Difference.of(each["solved"]), 1, 100, more_is_better=True) for each in minus)]
            )  # fmt: skip
    return markdown(("Solved, by budget", "dense, ms per token", "policy, ms per token", *head), rows)


def _followed(points: list[dict[str, Any]]) -> str:
    rows, head = [], []
    for by in _budgets(points):
        arms, ours = _against(by), by["policy"]
        told = ("policy", *arms)
        head = [
            *(f"alike: {arm}" for arm in told),
            *(f"KL: {arm}" for arm in told),
            *(f"policy − {arm}" for arm in arms),
        ]
        rows.append(
            [f"{ours['budget']:g}", f"{ours['spent']['ms']:.1f}", *(f"{100 * by[arm]['agreed']:.0f} %" for arm in told),
             *(f"{by[arm]['kl']:.4f}" for arm in told),
             *(interval(Difference.of(by[arm]["policy_minus"]["kl"]), 4) for arm in arms)]
        )  # fmt: skip
    return markdown(("Budget", "ms per token", *head), rows)


@table
def adherence() -> str:
    rows = [
        [
            point["space"],
            str(point["length"]),
            *(f"{max(axis['max'] for axis in point[key].values()):.3f}" for key in ("policy", of.ARMS["allocated"])),
        ]
        for point in of.adherence()
    ]
    return markdown(("Space", "steps", "policy, largest miss", "allocated, largest miss"), rows)


@table
def best_of() -> str:
    rows = [
        [f"{p['budget']:g}", f"{p['best']:.3f}", f"{p['best_estimated_from_2']['mean']:.3f}", f"{p['policy']:.3f}",
         interval(Difference.of(p["policy_minus_best"]))]
        for p in of.best_of()
    ]  # fmt: skip
    return markdown(("Net keep", "best of 500", "as estimated from 2", "policy", "policy − best of 500"), rows)
