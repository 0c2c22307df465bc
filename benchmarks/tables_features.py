"""The table of what a step can see, and what that saves at equal milliseconds."""

from cells import markdown, table
from published import RESULTS, read

MODELS = {"features-135m": "SmolLM2-135M", "features-0.5b": "Qwen2.5-Coder-0.5B"}
"""By result, the model that it is about. Shown are those that have been measured."""
ROWS = {
    "policy": "what the policy's network says, fitted anew",
    "policy, entropy": "… and the entropy of the prediction before",
    "policy, margin": "… its best token's lead",
    "policy, surprise": "… what the token that came cost there",
    "policy, position": "… position",
    "policy, norms": "… norms of the stream and of its change",
    "policy, stream": "… the stream before the policy's layer",
    "all": "all of them",
    "all, three outputs": "…, three groups of layers apart",
    "all, only at a third": "all, at a third of the depth alone",
    "all, and again at a third": "all, and again at a third of the depth",
    "all, and again at two thirds": "…, and again at two thirds",
    "all, three looks": "…, and again at both",
    "known": "*sensitivities known*",
}


@table
def features() -> str:
    """By what is seen, what is explained and saved; nothing where it was not measured."""
    measured = [name for name in MODELS if (RESULTS / f"{name}.json").exists()]
    if not measured:
        return ""
    arms = [read(name)["arms"] for name in measured]
    head = ["What is seen", *(part for name in measured for part in (f"{MODELS[name]}, explained", "saved"))]
    rows = [
        [
            words,
            *(cell for found in arms for cell in (f"{found[name]['explained']:.2f}", _percent(found[name]["saved"]))),
        ]
        for name, words in ROWS.items()
    ]
    files = " and ".join(f"`results/{name}.json`" for name in measured)
    return (
        "### What a step can see\n\n"
        "What features tell of a token's sensitivity beside thresholds, read off measured losses: the squared\n"
        "correlation of logarithms, and the part of the divergence that is saved at equal milliseconds.\n"
        f"A deeper look acts on the layers after it alone. {files}.\n\n"
        + markdown(head, rows)
        + "\n"
        + _tuned(measured)
    )


def _tuned(measured: list[str]) -> str:
    """What fine-tuning the policy's network by either method saves, by updates."""
    found = [read(name)["tuned"] for name in measured]
    rows = [
        [f"{method}, {updates} updates", *(_percent(one[method][updates]["saved"]) for one in found)]
        for method in found[0]
        for updates in found[0][method]
    ]
    return markdown(["The policy's network, fine-tuned", *(f"{MODELS[name]}, saved" for name in measured)], rows)


def _percent(saved: dict[str, float]) -> str:
    value, low, high = (f"{100 * saved[end]:+.1f}" for end in ("value", "low", "high"))
    bold = "**" if saved["low"] > 0 else ""
    return f"{bold}{value} %{bold} [{low}, {high}]"
