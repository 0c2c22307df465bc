"""What the settings that `engine.py` times lose: nats per token of held-out text, on the cpu backend, without a policy.

    python benchmarks/settings.py --model FILE.gguf --data TEXT --context 1024 --texts 24 --out settings.json

Every text is read densely up to the context, and its next 128 tokens are scored under each setting, all layers alike.
A loss is the difference to the dense steps of the same texts, with a 95 % interval over texts.
"""

import sys
from typing import Any

import numpy as np
import torch

import solm
from common import finish, parser
from solm.data.windows import token_stream
from solm.evaluation.statistics import paired_difference
from timed_engines import SETTINGS

_LENGTH = 128
"""Tokens that are scored."""


def main() -> int:
    options_parser = parser(__doc__)
    options_parser.add_argument("--data", required=True, help="a text file, as for `solm eval`")
    options_parser.add_argument("--context", type=int, default=1024)
    options_parser.add_argument("--texts", type=int, default=24)
    options_parser.add_argument("--precision", help="of the cpu backend")
    options = options_parser.parse_args()
    lm = solm.load(options.model, backend="cpu", precision=options.precision)
    whole = options.context + _LENGTH + 1
    texts = token_stream(options.data, lm.tokenizer).spaced(options.texts, whole, torch.Generator().manual_seed(0))
    nats: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for text in texts[:, None]:
        session = lm.session(capacity=whole)
        session.prefill(text[:, : options.context])
        for name, keep in SETTINGS.items():
            schedule = torch.tensor(keep, dtype=torch.float64).expand(1, _LENGTH, 3)
            scored = session.fork(1, _LENGTH).score(text[:, options.context :], schedule)
            nats[name].append(-float(scored.log_probabilities.mean()))
    arrays = {name: np.array(found) for name, found in nats.items()}
    losses = {name: paired_difference(found, arrays["dense"]) for name, found in arrays.items()}
    results: dict[str, Any] = {"texts": len(texts), "dense_nats": float(arrays["dense"].mean())}
    results["settings"] = {name: loss._asdict() for name, loss in losses.items()}
    lines = [f"{name:20} {loss.value:+.3f} [{loss.low:+.3f}, {loss.high:+.3f}]" for name, loss in losses.items()]
    finish("settings", options, results, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
