"""What a step can see, and what that saves at equal shares: a table, and a line of history for every feature."""

from typing import Any

from cells import markdown, table
from published import measured, read

MODELS = {"features-135m": "SmolLM2-135M", "features-0.5b": "Qwen2.5-Coder-0.5B"}
"""By result, the model that it is about. Shown are those that have been measured."""
ROWS = {
    "policy, as it is": "what the policy's network says",
    "policy": "the same, fitted anew: **N**",
    "policy, entropy": "N and the entropy of the prediction before",
    "policy, margin": "N and the margin of that prediction's best token",
    "policy, surprise": "N and that prediction's loss on the token that came",
    "policy, position": "N and the position in the text",
    "policy, norms": "N and norms of the residual stream and its change",
    "policy, stream": "N and the whole stream before the policy's layer",
    "all but the stream": "N and all of these but the stream",
    "all": "N and all of these: **A**",
    "all, two outputs, parted at a third": "A, separate predictions for layers before and after a third",
    "all, two outputs, parted at two thirds": "A, separate predictions for layers before and after two thirds",
    "all, three outputs": "A, separate predictions for three groups of layers",
    "all, only at a third": "A, read at a third of the depth, used from there on",
    "all, only at two thirds": "A, read at two thirds, used from there on",
    "all, and again at a third": "A, updated at a third",
    "all, and again at two thirds": "A, updated at two thirds",
    "all, three looks": "A, updated at both",
    "known": "*sensitivities known*",
}
"""By arm of the result what it sees, in the order of the table."""
TRIED = {
    "policy, entropy": "The entropy of the prediction before",
    "policy, margin": "How far that prediction's best token is ahead of the second",
    "policy, surprise": "That prediction's loss on the token that came",
    "policy, position": "The position in the text",
    "policy, norms": "The norm of the residual stream and of what layers added to it",
    "policy, stream": "The whole residual stream before the policy's layer",
    "all but the stream": "All of these but the stream",
    "all": "All of these together",
    "all, two outputs, parted at a third": "All, with separate predictions for layers before and after a third",
    "all, two outputs, parted at two thirds": "All, with separate predictions for layers before and after two thirds",
    "all, three outputs": "All, with separate predictions for three groups of layers",
    "all, only at a third": "All, read at a third of the depth, used from there on",
    "all, only at two thirds": "All, read at two thirds, used from there on",
    "all, and again at a third": "All, updated at a third",
    "all, and again at two thirds": "All, updated at two thirds",
    "all, three looks": "All, updated at both",
}
"""By arm what was tried beside the policy's network, for the history."""
METHODS = {"gradient": "policy gradient", "regression": "regression"}
WORTH = 0.03
"""The part of the loss that a feature must save beyond the policy's network, on every model."""


def found() -> dict[str, Any]:
    """By model what was measured of it."""
    return {model: read(name) for name, model in MODELS.items() if measured(name)}


def worth(gains: list[dict[str, float]]) -> bool:
    """Whether what a feature saves more on every model would pay for building it."""
    return all(gain["value"] >= WORTH and gain["low"] > 0 for gain in gains)


@table
def features() -> str:
    """By what is seen, what is explained and saved; nothing where it was not measured."""
    every = found()
    if not every:
        return ""
    arms = {model: results["arms"] for model, results in every.items()}
    head = [
        "What is seen",
        *(f"{model}, {what}" for model in arms for what in ("explained", "saved, %", "more than N")),
    ]
    rows = [
        [words, *(cell for model in arms for cell in _cells(arms[model][name], name != "policy"))]
        for name, words in ROWS.items()
    ]
    [one, *_] = every.values()
    depths = " and ".join(f"{results['layers'][0]} of {results['depth']}" for results in every.values())
    files = " and ".join(f"`results/{name}.json`" for name in MODELS if measured(name))
    low, *_, high = one["levels"]
    shares = ", ".join(f"{level:g}" for level in one["levels"])
    text = (
        "### What a step can see\n\n"
        f"Would a policy that sees more save more? Every token takes an MLP share of {low:g} to {high:g}, each text\n"
        f"{one['base']:g} on average, by thresholds, after {one['context']} tokens. Losses were measured at shares of\n"
        f"{shares}, and are interpolated between them; no schedule was run. Columns:\n\n"
        "- **explained**: the squared correlation of predicted with measured sensitivities, in logarithms.\n"
        "- **saved**: of the divergence from the dense prediction (KL), against one share for all tokens.\n"
        "- **more than N**: that, beyond what the policy's network saves, fitted anew; paired over texts.\n\n"
        f"Predictions are ridge regressions, fitted on {one['texts']} texts ({one['tokens']:,} tokens), judged on\n"
        f"{one['held_out_texts']} held-out ones ({one['held_out_tokens']:,} tokens). The policy's layer is {depths}.\n"
        "A prediction made deeper acts on later layers alone. Equal shares stand for equal milliseconds; the time of\n"
        "predictions is not counted. Both policies were trained on the sources that the predictions are fitted on.\n"
        "That of SmolLM2-135M was also trained on one of the three sources that the predictions are judged on.\n"
        f"{files}.\n\n"
    )
    return text + markdown(head, rows) + "\n" + _tuned(every)


@table
def features_tried() -> str:
    """One line of history for every feature: what it saves beyond the policy's network, kept or not."""
    every = found()
    if not every:
        return ""
    lines = []
    for name, words in TRIED.items():
        gains = {model: results["arms"][name]["more"] for model, results in every.items()}
        each = ", ".join(f"{_interval(gain)} on {model}" for model, gain in gains.items())
        lines.append(f"- {words}: {each}. {'Worth building.' if worth([*gains.values()]) else 'Not kept.'}\n")
    return (
        "Beside what the policy's network says, offline ([table](results-method.md#what-a-step-can-see)). Numbers are "
        "what was\nsaved beyond that network, fitted anew, in points: per cent of the divergence at equal shares. Kept "
        f"is what gains\n{100 * WORTH:.0f} points on every model, beyond the noise.\n\n" + "".join(lines)
    )


def _tuned(every: dict[str, Any]) -> str:
    """What fine-tuning the policy's network by either method saves, by updates."""
    tuned = [results["tuned"] for results in every.values()]
    rows = [
        [
            f"{METHODS[method]}, {updates} updates",
            *(cell for one in tuned for cell in _cells(one[method][updates], True)[1:]),
        ]
        for method in tuned[0]
        for updates in tuned[0][method]
    ]
    columns = (f"{model}, {what}" for model in every for what in ("saved, %", "more than N"))
    head = ["Fine-tuned by", *columns]
    return "The policy's network itself, fine-tuned on the same texts and losses:\n\n" + markdown(head, rows)


def _cells(arm: dict[str, Any], beside: bool) -> list[str]:
    """Explained, saved, and more than the network; beside: whether it is not the network itself."""
    return [f"{arm['explained']:.2f}", _interval(arm["saved"]), _interval(arm["more"], bold=True) if beside else "0"]


def _interval(part: dict[str, float], bold: bool = False) -> str:
    """A part of the loss in per cent with its interval; bold: where that is above zero."""
    value, low, high = (f"{100 * part[end]:+.1f}" for end in ("value", "low", "high"))
    mark = "**" if bold and part["low"] > 0 else ""
    return f"{mark}{value}{mark} [{low}, {high}]"
