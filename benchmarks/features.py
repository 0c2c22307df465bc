"""What a step can see, and what that tells of its token's sensitivity: what it saves at equal shares, offline.

    python benchmarks/features.py --model FILE.gguf --policy POLICY --data wiki,code --held-out web.jsonl \\
        --samples FOLDER --out features.json

Texts are scored under thresholds: all layers at one MLP share, and the layers from a look on (the policy's layer, a
third and two thirds of the depth) at others. What features tell is learned on the texts of --data (`foresight.py`). On
those of --held-out every token takes the share of the lowest predicted loss plus price, within the average that its
text realises at the one share. What that loses is read off the measured losses. A deeper look acts on the layers after
it alone. Equal shares stand for equal milliseconds: what looking itself takes is not counted.

`more` is what an arm saves beyond the arm "policy", the prediction of the policy's network fitted anew, paired over
texts. With --samples an interrupted run goes on; what was measured otherwise, or of another model, is left alone.
"""

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

import solm
from common import finish, parser
from foresight import BASE, LEVELS, Look, predicted, saving
from solm.backends.logits import divergences, log_probabilities
from solm.backends.results import SplitSchedule
from solm.core.files import read_tensors, write_tensors
from solm.data.windows import token_stream
from solm.evaluation.perplexity import EvaluationSettings, held_out_windows
from solm.evaluation.statistics import paired_difference
from solm.runtime.language_model import LanguageModel
from solm.training.rollout import step_generator
from solm.training.sources import draw_windows
from tuning import tuned

PLACES = ("the policy's layer", "a third", "two thirds")
CHEAP = ("entropy", "margin", "surprise", "position")
"""Of the prediction before: its entropy, how far its best token is ahead, what the token that came cost."""
FREE = ("policy", *CHEAP, "norms")
ALL = (*FREE, "stream")
_THRESHOLD_TEXTS = 16

Text = dict[str, torch.Tensor]


def main() -> int:
    options_parser = parser(__doc__)
    options_parser.add_argument("--policy", required=True, help="whose allocation, thresholds and layer hold")
    options_parser.add_argument("--data", required=True, help="sources to learn from, separated by commas")
    options_parser.add_argument("--held-out", required=True, help="sources that are judged on")
    options_parser.add_argument("--texts", type=int, default=48, help="of --data; half as many are held out")
    options_parser.add_argument("--context", type=int, default=256, help="tokens read densely first")
    options_parser.add_argument("--length", type=int, default=128, help="tokens scored of every text")
    options_parser.add_argument("--threads", type=int)
    options_parser.add_argument("--samples", type=Path, help="folder that keeps what was measured of every text")
    options = options_parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    lm = solm.load(options.model, options.policy, backend="cpu", threads=options.threads)
    assert lm.trained is not None
    assert lm.tokenizer is not None
    whole, half = options.context + options.length + 1, max(1, options.texts // 2)
    ours, theirs = (
        [token_stream(source, lm.tokenizer) for source in given.split(",")]
        for given in (options.data, options.held_out)
    )
    train = draw_windows(ours, options.texts, whole, step_generator(0, 0, 0))
    settings = EvaluationSettings(budgets=(1.0,), texts=half, context=options.context, length=options.length)
    test = held_out_windows(theirs, settings)
    if lm.sparsity.thresholds is None:
        limits = lm.backend.channel_thresholds(train[:_THRESHOLD_TEXTS, : options.context])
        lm = lm.with_policy(lm.trained, lm.sparsity.model_copy(update={"thresholds": limits}))
    depth = lm.shapes.layers
    layers = [lm.trained.config.network.layer, depth // 3, 2 * depth // 3]
    found = []
    for name, windows in (("train", train), ("test", test)):
        texts = []
        for number, text in enumerate(windows):
            texts.append(kept(options.samples, lm, text[None], options.context, layers))
            print(f"{name}: {number + 1} of {len(windows)} texts", file=sys.stderr)
        found.append({key: torch.stack([text[key] for text in texts]) for key in texts[0]})
    of = Foresight(*found)
    first = [one for [one] in of.looks([0])]
    results = {
        "arms": of.arms(), "tuned": tuned(lm.trained.network, [text["stream"][:, 0] for text in found], first),
        "texts": len(train), "tokens": found[0]["policy"].numel(), "held_out_texts": len(test),
        "held_out_tokens": found[1]["policy"].numel(), "context": options.context, "depth": depth, "layers": layers,
        "levels": LEVELS, "base": BASE,
    }  # fmt: skip
    rows = dict(results["arms"])
    rows |= {f"{how}, {count} updates": arm for how, some in results["tuned"].items() for count, arm in some.items()}
    lines = []
    for name, arm in rows.items():
        arm["more"] = more(arm, rows["policy"])
        saved, beyond = (
            "{value:+.1f} [{low:+.1f}, {high:+.1f}]".format(**{end: 100 * part for end, part in arm[what].items()})
            for what in ("saved", "more")
        )
        lines.append(f"{name:44} explained {arm['explained']:.3f}  saved {saved} %, beyond the policy {beyond}")
    finish("features", options, results, lines)
    return 0


def more(arm: dict[str, Any], policy: dict[str, Any]) -> dict[str, float]:
    """What an arm saves beyond another on the same texts, with its 95 % interval, as parts of the loss."""
    return paired_difference(np.array(arm["saved_by_text"]), np.array(policy["saved_by_text"]))._asdict()


def kept(folder: Path | None, lm: LanguageModel, text: torch.Tensor, context: int, layers: list[int]) -> Text:
    """What `measured` finds, from the folder where it is there already."""
    path = None if folder is None else folder / f"{_digest(lm, text, context, layers)}.safetensors"
    if path is not None and path.exists():
        return read_tensors(path)
    found = measured(lm, text, context, layers)
    if path is not None:
        write_tensors(path, found)
    return found


def _digest(lm: LanguageModel, text: torch.Tensor, context: int, layers: list[int]) -> str:
    """Of all that `measured` depends on, but for the code."""
    assert lm.trained is not None
    known = [lm.identity.model_dump_json(), str(lm.backend.dtype), lm.sparsity.model_dump_json()]
    known += [lm.trained.config.network.model_dump_json(), repr((context, layers, LEVELS, BASE))]
    arrays = [text, *lm.trained.network.state_dict().values()]
    parts = [*(part.encode() for part in known), *(array.detach().cpu().numpy().tobytes() for array in arrays)]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


@torch.no_grad()
def measured(lm: LanguageModel, text: torch.Tensor, context: int, layers: list[int]) -> Text:
    """Of one text [1, context + T + 1], with D looks before `layers` and L levels.

    kl, cost, share: [D, L, T] divergence from the dense prediction, loss of the token that came above the dense one,
    both in nats, and the realised MLP share of all layers. stream: [D, T, H] bfloat16, what enters the looks' layers.
    norms: [D, T, 2], its norm and that of what layers have added. policy: [T], the sensitivity that the policy
    predicts. cheap: [T, 4], see `CHEAP`.
    """
    session = lm.session(capacity=context)
    first = session.prefill(text[:, :context])
    tokens, following = text[:, context:-1], text[:, context + 1 :]
    steps = tokens.shape[1]

    def keep(mlp: float) -> torch.Tensor:
        return torch.tensor([1.0, mlp, 16.0], dtype=torch.float64).expand(1, steps, 3)

    def run(schedule: Any) -> Any:
        return session.fork(1, capacity=steps + lm.sparsity.page_size).extend(tokens, schedule)

    dense = run(keep(1.0)).logits
    told = log_probabilities(dense, following)[0]
    kl, cost, share = (torch.zeros(len(layers), len(LEVELS), steps) for _ in range(3))
    streams, before = [], first[:, None]
    for place, layer in enumerate(layers):
        for number, level in enumerate(LEVELS):
            if level == BASE and place:  # the same for every look
                for values in (kl, cost, share):
                    values[place, number] = values[0, number]
                continue
            found = run(SplitSchedule(layer, keep(BASE), keep(level)))
            kl[place, number] = divergences(found.logits[0][:, None], dense[0])[:, 0]
            cost[place, number] = told - log_probabilities(found.logits, following)[0]
            share[place, number] = found.realised[0, :, 1].float()
            if level == BASE:
                before = torch.cat([before, found.logits[:, :-1]], 1)
        streams.append(found.stream[0].float())
    embedded = lm.backend.embed(tokens)[0].float()
    policy: Any = lm.policy("policy")
    return {
        "kl": kl, "cost": cost, "share": share, "cheap": cheap(before[0], tokens[0], context),
        "policy": policy.sensitivities(streams[0][None], keep(BASE))[0, :, 1].float(),
        "stream": torch.stack(streams).to(torch.bfloat16),
        "norms": torch.stack([torch.stack([x.norm(dim=-1), (x - embedded).norm(dim=-1)], -1) for x in streams]),
    }  # fmt: skip


def cheap(before: torch.Tensor, tokens: torch.Tensor, context: int) -> torch.Tensor:
    """[T, 4] in the order of `CHEAP`, from the logits before every token [T, V] and the tokens [T]."""
    told = before.float().log_softmax(-1)
    best = told.topk(2, -1).values
    entropy = -(told.exp() * told).sum(-1)
    surprise = -told.gather(-1, tokens[:, None])[:, 0]
    return torch.stack([entropy, best[:, 0] - best[:, 1], surprise, (context + torch.arange(len(tokens))).log()], -1)


def features(text: Text, place: int) -> dict[str, np.ndarray]:
    """By name what a look sees, [W, T, F] each."""
    stream = text["stream"][:, place].float()
    found = {name: text["cheap"][..., number, None] for number, name in enumerate(CHEAP)} | {
        "policy": text["policy"][..., None].clamp(min=1e-3).log(), "norms": text["norms"][:, place].log(),
        "stream": F.layer_norm(stream, stream.shape[-1:]),
    }  # fmt: skip
    return {name: values.double().numpy() for name, values in found.items()}


class Foresight:
    """What was learned on some texts and is judged on others."""

    def __init__(self, train: Text, test: Text):
        self.texts = train, test
        self.seen = [[features(text, place) for text in self.texts] for place in range(len(PLACES))]
        self._found: dict[Any, np.ndarray] = {}

    def looks(self, places: list[int]) -> tuple[list[Look], list[Look]]:
        """Looks at `places`, each deciding up to the next one, on both texts."""
        spans = list(zip(places, [*places[1:], None], strict=True))
        ours, theirs = (
            [Look.of(*(text[name].numpy() for name in ("kl", "cost", "share")), *span) for span in spans]
            for text in self.texts
        )
        return ours, theirs

    def arm(self, places: list[int], names: tuple[str, ...], eyes: list[int] | None = None) -> dict[str, Any]:
        """Decisions at `places`, from the features `names` as seen at `eyes`, by default there. No names: sensitivities
        are known."""
        ours, theirs = self.looks(places)
        truth = [look.sensitivity for look in theirs]
        guesses = truth
        if names:
            ends = [*places[1:], None]
            guesses = [
                self._predicted((place, end, eye, names), look)
                for place, end, eye, look in zip(places, ends, eyes or places, ours, strict=True)
            ]
        return self.judged(ours, theirs, guesses)

    def judged(self, ours: list[Look], theirs: list[Look], guesses: list[np.ndarray]) -> dict[str, Any]:
        """What sensitivities `guesses` save; `explained` is the squared correlation of their logarithms with the true
        ones, at the last look, and 0 where all are alike."""
        logs = [np.log(values).ravel() for values in (guesses[-1], theirs[-1].sensitivity)]
        alike = min(values.std() for values in logs) < 1e-12
        return saving(ours, theirs, guesses) | {"explained": 0.0 if alike else float(np.corrcoef(*logs)[0, 1] ** 2)}

    def _predicted(self, key: Any, look: Look) -> np.ndarray:
        *_, eye, names = key
        if key not in self._found:
            known, asked = (np.concatenate([text[name] for name in names], -1) for text in self.seen[eye])
            self._found[key] = predicted(known, look.sensitivity, asked)
        return self._found[key]

    def arms(self) -> dict[str, Any]:
        """What sets of features explain and save, by name; see `foresight.saving`. "policy" is its network's
        prediction fitted anew, and all others but "as it is" and "known" have it too."""
        as_it_is = [self.texts[1]["policy"].double().numpy()]
        arms = {"policy, as it is": self.judged(*self.looks([0]), as_it_is)}
        for name in ALL:
            arms[name if name == "policy" else f"policy, {name}"] = self.arm(
                [0], tuple(dict.fromkeys(("policy", name)))
            )
        arms |= {"all but the stream": self.arm([0], FREE), "all": self.arm([0], ALL), "known": self.arm([0], ())}
        for place in (1, 2):
            there = PLACES[place]
            arms[f"all, only at {there}"] = self.arm([place], ALL)
            arms[f"known, only at {there}"] = self.arm([place], ())
            arms[f"all, two outputs, parted at {there}"] = self.arm([0, place], ALL, [0, 0])
            arms[f"all, and again at {there}"] = self.arm([0, place], ALL)
        arms["all, three outputs"] = self.arm([0, 1, 2], ALL, [0, 0, 0])
        arms["all, three looks"] = self.arm([0, 1, 2], ALL)
        return arms


if __name__ == "__main__":
    sys.exit(main())
