"""The tables about long contexts: what reading fewer pages of the KV cache loses, and on a larger model saves. And what
cheap steps leave behind in the cache."""

from typing import Any

import published as of
from cells import NONE, interval, markdown, table
from published import Difference

SHARES = (0.3, 0.2, 0.1)
LARGER, ANSWERS = "long-context-0.5b", "retrieval-0.5b"
_BLOCK, _FITTED, _MEASURED = 32, 512, 4096
"""Tokens that the study resamples together, and contexts of the larger model's fit."""
TASKS = {"longeval_lines": "lines", "niah_multikey": "needles"}
DRIFT = {"SmolLM2-135M": "kv-drift-135m", "Qwen2.5-Coder-0.5B": "kv-drift-0.5b"}


@table
def long_context() -> str:
    rows = []
    for context, arms in of.books().items():
        cells = []
        for share in SHARES:
            uniform, allocated = (arms[of.book_arm(arm, share)] for arm in ("uniform", "allocated"))
            cells.append(f"{uniform['minus_dense']['value']:+.3f} → {allocated['minus_dense']['value']:+.3f}")
        policy = interval(Difference.of(arms[of.book_arm("policy", 0.2)]["minus_constant"]))
        rows.append([f"{context:,}", *cells, f"{arms[of.book_arm('allocated', 0.2)]['bytes']:.2f}", policy])
    head = [f"pages {share:g}: uniform → allocated" for share in SHARES]
    return markdown(("Context", *head, "bytes at 0.2", "policy − constant at 0.2"), rows)


@table
def retrieval() -> str:
    rows = []
    for name, label in TASKS.items():
        arms = of.retrieval()[name]
        nats = {
            arm: [f"{-arms[of.book_arm(arm, share)]['nats']:.1f}" for share in SHARES]
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
    """The same of a larger model, with milliseconds where steps were timed, once it was measured."""
    if not of.measured(LARGER):
        return ""
    found = of.books(LARGER)
    parts = [f"### Long contexts on a larger model\n\n{_about(found)}", _losses(found).rstrip(), _limits(found)]
    parts.append(f"`results/{LARGER}.json`.")
    if of.measured(ANSWERS):
        parts += [_about_answers(), _answers().rstrip(), f"`results/{ANSWERS}.json`."]
    return "\n".join(["", "\n\n".join(parts), ""])


def _losses(found: dict[int, dict[str, dict[str, Any]]]) -> str:
    """By context: nats above dense and milliseconds of each share, the allocation's and the policy's gains."""
    rows = []
    for context, arms in found.items():
        cells = [_milliseconds(arms[of.book_arm("allocated", 1)])]
        for share in SHARES:
            uniform, allocated = (arms[of.book_arm(arm, share)] for arm in ("uniform", "allocated"))
            loss = f"{uniform['minus_dense']['value']:+.3f} → {allocated['minus_dense']['value']:+.3f}"
            cells.append(f"{loss}, {_milliseconds(allocated)}")
        policy = arms[of.book_arm("policy", 0.2)]
        cells += [
            f"{policy['minus_dense']['value']:+.3f}, {_milliseconds(policy)}",
            interval(Difference.of(arms[of.book_arm("uniform", 0.2)]["constant_minus_uniform"])),
            interval(Difference.of(policy["minus_constant"])),
        ]
        rows.append([f"{context:,}", *cells])
    head = (f"pages {share:g}: uniform → allocated" for share in SHARES)
    last = ("policy at 0.2", "allocated − uniform at 0.2", "policy − constant at 0.2")
    return markdown(("Context", "dense", *head, *last), rows)


def _about_answers() -> str:
    return (
        f"Retrieval over about 4,300 tokens, {of.settings(ANSWERS)['questions']} questions of each set: the "
        "log-probability of the whole answer. Differences are of losses, in nats per answer. Few answers would be "
        "written in these very words, also by dense steps, so that none are counted."
    )


def _answers() -> str:
    """By set and share: log-probability of an answer, the allocation's and the policy's gains."""
    rows = []
    for task, arms in of.retrieval(ANSWERS).items():
        for share in SHARES:
            uniform, allocated = (arms[of.book_arm(arm, share)] for arm in ("uniform", "allocated"))
            gain = interval(Difference.of(uniform["constant_minus_uniform"]), 1)
            cells = [f"{-arm['nats']:.1f}" for arm in (arms[of.book_arm("allocated", 1)], uniform, allocated)] + [gain]
            policy = arms.get(of.book_arm("policy", share))
            if policy is None:
                cells += [NONE, NONE]
            else:
                cells += [f"{-policy['nats']:.1f}", interval(Difference.of(policy["minus_constant"]), 1)]
            rows.append([f"{TASKS[task]}, pages {share:g}", *cells])
    head = ("dense", "uniform", "allocated", "allocated − uniform", "policy", "policy − constant")
    return markdown(("Answers", *head), rows)


def _milliseconds(arm: dict[str, Any]) -> str:
    return f"{arm['milliseconds']:.1f} ms" if "milliseconds" in arm else NONE


def _about(found: dict[int, dict[str, dict[str, Any]]]) -> str:
    how = of.settings(LARGER)
    timed = any("milliseconds" in arm for arms in found.values() for arm in arms.values())
    clock = (
        f" The first {how['timed']} of them were also decoded one by one, one arm after the other within a text: "
        "milliseconds of a step, the median of the texts, on a shared machine."
        if timed
        else " Steps were not timed."
    )
    return (
        f"Qwen2.5-Coder-0.5B, Q4_K_M file, cpu backend, with the policy that ships for it. {how['texts']} texts of "
        f"books; of each, {how['length']} tokens are scored after every context: nats per token above dense.{clock}"
    )


def _limits(found: dict[int, dict[str, dict[str, Any]]]) -> str:
    """What the numbers cannot say. Every context scores other tokens of the same texts."""
    how = of.settings(LARGER)
    blocks = how["texts"] * int(how["length"]) // _BLOCK
    return (
        f"Intervals are over {blocks} blocks of {_BLOCK} tokens from {how['texts']} texts; blocks of a text are alike, "
        "so that the intervals are too narrow rather than too wide. Every context scores other tokens: compare "
        f"within a row. The policy learned after {_FITTED} tokens; what shares of the pages lose was also measured "
        f"after {_MEASURED:,}. Only its attention axis is used here."
    )


@table
def kv_drift() -> str:
    """What a burst of cheap steps loses, and the dense steps after it, by the distance from its end."""
    kinds = {"all": "all three", "attention": "pages 0.1", "mlp": "MLP 0.4", "bits": "5 bits"}
    rows = []
    for model, name in DRIFT.items():
        found, settings = of.read(name), of.settings(name)
        assert settings["action"] == "k010-s040-q5"
        for kind, after in found["after"].items():
            points = [found["during"][kind], *after]
            rows.append([model, kinds[kind], *(interval(Difference.of(point)) for point in points)])
    stretch = settings["stretch"]
    ends = range(stretch, stretch * len(after) + 1, stretch)
    head = ("Model", "Cheap steps", "during", *(f"dense steps {end - stretch + 1} to {end}" for end in ends))
    return markdown(head, rows, words=2)
