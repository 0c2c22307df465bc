"""The tables about quality at equal compute."""

from collections.abc import Sequence
from typing import Any

import published as of
from cells import NONE, interval, markdown, signed, table
from published import Difference

GRADIENT = "-policy-gradient"
"""After a space, the result of a policy of the paper's training."""


def compared(folder: str, spaces: Sequence[str], arms: Sequence[str], against: Sequence[str]) -> str:
    rows = []
    for space in spaces:
        for found in of.comparisons(folder, space):
            rows.append(
                [
                    f"{space.removesuffix(GRADIENT)}, {found.net_keep:g}",
                    *(signed(found.above_dense[arm]) if arm in found.above_dense else NONE for arm in arms),
                    *(interval(found.policy_minus[arm]) if arm in found.policy_minus else NONE for arm in against),
                ]
            )
    return markdown(("Space, net keep", *arms, *(f"policy − {arm}" for arm in against)), rows)


@table
def baselines() -> str:
    against = ("allocated", "uniform", "tuned", "best of 500")
    return compared("policies", ["fine"], ("policy", *against, "token table"), against)


GRIDS = ("attention-fine", "mlp-fine", "bits-fine", "joint-8", "joint-27", "joint-336")
"""Of the paper."""


@table
def grids() -> str:
    against = ("allocated", "uniform", "tuned", "best of 500")
    return compared("policies", GRIDS, ("policy", "constant"), against)


@table
def grids_larger() -> str:
    """The same on a larger model as the paper carries actions out, and the paper's own training, once measured."""
    found = paper_grids("paper-0.5b", "Qwen2.5-Coder-0.5B")
    if found and of.measured(f"paper-0.5b/joint-27{GRADIENT}"):
        found += (
            "\nThe paper's training on joint-27 (`--method grpo`), 110 updates of 64 schedules, on the same texts. "
            "Here *uniform* spends what this policy spends:\n\n"
            f"{compared('paper-0.5b', ['joint-27' + GRADIENT], ('policy', 'uniform'), ('uniform',))}\n"
            f"`results/paper-0.5b/joint-27{GRADIENT}.json`.\n"
        )
    return found


@table
def grids_largest() -> str:
    """The same on the 1.5B."""
    return paper_grids("paper-1.5b", "Qwen2.5-Coder-1.5B")


def paper_grids(folder: str, model: str) -> str:
    """What a policy of `solm train` loses on the paper's grids, and against what, with how it was measured."""
    against = ("uniform", "tuned", "constant", "best of 500")
    spaces = [space for space in GRIDS if of.measured(f"{folder}/{space}")]
    if not spaces:
        return ""
    how = of.settings(f"{folder}/{spaces[0]}")
    files = ", ".join(f"`results/{folder}/{space}.json`" for space in spaces)
    about = (
        f"{model}, the Q4_K_M file in bfloat16, actions as the paper carries them out (`--sparsity paper`): "
        "pages by query head, input channels alone, outputs of the MLP rounded. There is no allocation, so that "
        f"*uniform* is the paper's static schedule. {how['texts']} held-out texts × {how['length']} tokens after "
        f"{how['context']}. {'One policy of `solm train` serves all grids. ' if len(spaces) > 1 else ''}*Uniform* and "
        "*constant* spend on every axis what the policy spends."
    )
    found = [comparison for space in spaces for comparison in of.comparisons(folder, space)]
    oracle = [arm for arm in ("oracle",) if any(arm in one.above_dense for one in found)]
    return f"\n{about}\n\n{compared(folder, spaces, ('policy', *against, *oracle), against)}\n{files}.\n"


@table
def grids_own() -> str:
    """Single axes of the same grids as solm carries actions out, by the policy that ships."""
    arms = ("policy", "allocated", "uniform", "constant", "best of 500")
    return own_grids(GRIDS[:2], arms, ("uniform", "constant", "best of 500"))


@table
def grids_own_joint() -> str:
    """The joint grids in the same way, by a policy of `solm train` without an allocation."""
    against = ("uniform", "tuned", "constant", "best of 500")
    return own_grids(GRIDS[3:], ("policy", *against), against)


def own_grids(spaces: Sequence[str], arms: Sequence[str], against: Sequence[str]) -> str:
    """What is lost on the 0.5B as solm carries actions out, beside the policy in the paper's way on the same texts."""
    rows = []
    for space in spaces:
        for found, paper in zip(of.comparisons("own-0.5b", space), of.comparisons("paper-0.5b", space), strict=True):
            lost = (*(found.above_dense[arm] for arm in arms), paper.above_dense["policy"])
            gains = (interval(found.policy_minus[arm]) for arm in against)
            rows.append([f"{space}, {found.net_keep:g}", *map(signed, lost), *gains])
    head = ("Space, net keep", *arms, "policy, the paper's way", *(f"policy − {arm}" for arm in against))
    return markdown(head, rows)


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
def fine_tuning() -> str:
    """Policy gradient after regression on half of the samples, beside regression on all of them, at equal minutes."""
    rows = []
    for name in ("fine-tuning-135m", "fine-tuning-135m-slow"):
        for point in of.read(name)["points"]:
            arms = point["arms"]
            minus = (Difference.of(point[f"fine_tuned_minus_{other}"]) for other in ("part", "all"))
            rows.append(
                [f"{of.settings(name)['learning_rate']:g}, {arms['all']['mlp']:.2f}",
                 *(signed(arms[arm]["nats"]) for arm in ("part", "all", "fine-tuned")), *map(interval, minus)]
            )  # fmt: skip
    head = ("Learning rate, channels", "half", "all", "fine-tuned", "fine-tuned − half", "fine-tuned − all")
    return markdown(head, rows)


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
def free_running_larger() -> str:
    """Text that the 0.5B wrote under budgets in time."""
    arms, rows = ("allocated", "constant", "uniform"), []
    for point in of.read("free-running-0.5b")["points"]:
        by = point["arms"]
        kl = " / ".join(f"{by[arm]['kl']:.4f}" for arm in ("policy", *arms))
        minus = [interval(of.kl_difference(point, arm), 4) for arm in arms]
        rows.append([f"{point['budget']:g}", f"{by['policy']['ms']:.1f}", kl, *minus])
    head = ("Share of time", "ms", "policy / allocated / constant / uniform", *(f"policy − {arm}" for arm in arms))
    return markdown(head, rows)


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
