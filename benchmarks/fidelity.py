"""What the cpu backend's rounding costs: log-probabilities of held-out text beside the torch backend's.

    python benchmarks/fidelity.py --model FILE.gguf --data TEXT --out fidelity.json

The torch backend computes in float32 with the same weights: those of a GGUF file dequantised, others as they are. Both
backends read every window densely, and what they give the tokens that follow is compared token by token. A difference
below zero means that the cpu backend finds the text less likely. Its standard error is over windows.
"""

import math
import sys

import torch

import solm
from common import finish, parser
from solm.data.windows import token_stream

_LENGTH = 512
"""Tokens of a window."""


def main() -> int:
    options_parser = parser(__doc__)
    options_parser.add_argument("--data", required=True, help="a text file, as for `solm eval`")
    options_parser.add_argument("--tokens", type=int, default=10_240)
    options_parser.add_argument("--precision", default="auto,float32", help="of the cpu backend, separated by commas")
    options = options_parser.parse_args()
    count = math.ceil(options.tokens / _LENGTH)
    precisions = options.precision.split(",")
    found: dict[str, torch.Tensor] = {}
    windows = None
    for name in [*precisions, "torch"]:
        how = {"backend": "torch", "dtype": "float32"} if name == "torch" else {"backend": "cpu", "precision": name}
        lm = solm.load(options.model, **how)
        if windows is None:
            stream = token_stream(options.data, lm.tokenizer)
            windows = stream.spaced(count, _LENGTH + 1, torch.Generator().manual_seed(0))
        found[name] = torch.stack([_log_probabilities(lm, window) for window in windows])
        lm.detach()
    exact = found.pop("torch")
    results, lines = {"tokens": exact.numel(), "nats": -float(exact.mean()), "precisions": {}}, []
    for name, ours in found.items():
        gap = ours - exact
        mean, error = float(gap.mean()), float(gap.mean(1).std() / math.sqrt(len(gap)))
        results["precisions"][name] = {
            "mean_difference": mean, "standard_error": error, "mean_absolute_difference": float(gap.abs().mean())
        }  # fmt: skip
        lines.append(
            f"{name:10} {mean:+.4f} nats per token (standard error {error:.4f}), {gap.abs().mean():.4f} absolute"
        )
    finish("fidelity", options, results, lines)
    return 0


def _log_probabilities(lm: solm.LanguageModel, window: torch.Tensor) -> torch.Tensor:
    """Of the tokens that follow every token of a window [T + 1]: [T] float64."""
    session = lm.session(capacity=len(window))
    logits = session.prefill(window[None, :-1], every_logit=True)[0]
    return logits.double().log_softmax(-1).gather(-1, window[1:, None])[:, 0]


if __name__ == "__main__":
    sys.exit(main())
