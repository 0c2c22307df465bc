"""Controlled token-steps per second of training, prefill included.

    python benchmarks/rollout.py --json --dtype float32

Context 512, 2 texts x 16 schedules x 16 steps, joint-27, pages of 8: rollouts of a policy that reads the previous
step's hidden state, step by step (`--method grpo`), the same with 8 texts, and random schedules scored in one pass
beside the dense run (`--method values`; the dense run is not counted). Then the latter in its default shape, 4 x 3 x
256 after 384. `agreement` tells how much of what sets schedules of one text apart is rounding: the correlation of their
mean log-probabilities, texts' averages taken off, in float32 with those of other arithmetic.
"""

import statistics
import time
from dataclasses import dataclass

import torch

import solm
from common import draw_text, finish, parser, peak_memory_gib, scored_under, seconds_inside, spread
from solm.core.actions import ActionSpace
from solm.core.budget import Budget
from solm.core.sparsity import SparsityConfig
from solm.policies.learned import LearnedPolicy
from solm.policies.network import NetworkConfig, PolicyNetwork
from solm.training.counterfactual import collect_samples, draw_levels

SPACE, PAGE, MORE = "joint-27", 8, 8


@dataclass(frozen=True)
class Shape:
    context: int
    texts: int
    schedules: int
    steps: int

    @property
    def token_steps(self) -> int:
        return self.texts * self.schedules * self.steps


def sample_rates(lm: solm.LanguageModel, shape: Shape, rounds: int) -> list[float]:
    """Token-steps per second of random schedules, the dense run beside them not counted, once per round."""
    space = ActionSpace.preset(SPACE)
    windows = draw_text(lm, shape.texts, shape.context + shape.steps + 1)
    rates = []
    for turn in range(rounds + 1):
        generator = torch.Generator().manual_seed(turn)
        before, after = draw_levels(space, shape.texts, shape.schedules, shape.steps, generator)
        begun = time.perf_counter()
        collect_samples(lm, windows, shape.context, min(4, lm.shapes.layers - 1), before, after, space)
        rates.append(shape.token_steps / (time.perf_counter() - begun))
    return rates[1:]


def rollouts(lm: solm.LanguageModel, shape: Shape, rounds: int) -> list[dict[str, float]]:
    """Seconds of every round, by what they went into."""
    space = ActionSpace.preset(SPACE)
    torch.manual_seed(0)
    network = PolicyNetwork(NetworkConfig(base_hidden=lm.shapes.hidden, actions=len(space))).eval()
    policy = LearnedPolicy(network, space, clamp=False)
    windows = draw_text(lm, shape.texts, shape.context + shape.steps + 1)
    target = Budget.from_net(0.7, space).tensor(shape.texts * shape.schedules)
    following = windows[:, shape.context :].repeat_interleave(shape.schedules, 0)
    found = []
    for turn in range(rounds + 1):
        generator = torch.Generator().manual_seed(turn)
        with seconds_inside(model=lm.model, policy=network) as inside:
            begun = time.perf_counter()
            session = lm.session(capacity=shape.context)
            session.prefill(windows[:, : shape.context])
            prefill, prefill_model = time.perf_counter() - begun, inside["model"]
            forks = session.fork(shape.schedules, capacity=shape.steps + PAGE)
            scored_under(forks, policy, following, target, generator, record=True)
            total = time.perf_counter() - begun
        spent = {"prefill": prefill, "model_steps": inside["model"] - prefill_model, "policy": inside["policy"]}
        found.append({"total": total, **spent, "rest": total - sum(spent.values())})
    return found[1:]  # the first round pays for warm-up


def schedule_scores(lm: solm.LanguageModel, shape: Shape) -> torch.Tensor:
    """Mean log-probability of each of the same random schedules [texts · schedules], the text's average taken off."""
    space = ActionSpace.preset(SPACE)
    windows = draw_text(lm, shape.texts, shape.context + shape.steps + 1)
    session = lm.session(capacity=shape.context)
    session.prefill(windows[:, : shape.context])
    forks = session.fork(shape.schedules, capacity=shape.steps + lm.sparsity.page_size)
    following = windows[:, shape.context :].repeat_interleave(shape.schedules, 0)
    target = Budget.from_net(0.7, space).tensor(len(following))
    generator = torch.Generator().manual_seed(0)
    run = scored_under(forks, lm.policy("random", space), following, target, generator)
    scores = run.log_probabilities.double().mean(1).unflatten(0, (shape.texts, shape.schedules))
    return (scores - scores.mean(1, keepdim=True)).flatten()


def agreement(model: str, shape: Shape) -> dict[str, float]:
    """Correlation of `schedule_scores` with those of the torch backend in float32: in bfloat16, and on the cpu backend,
    which adds up the same float32 numbers in another order."""
    scores = []
    for dtype, backend in (("float32", "torch"), ("bfloat16", "torch"), ("float32", "cpu")):
        precision = "float32" if backend == "cpu" else None
        lm = solm.load(model, sparsity=SparsityConfig(), dtype=dtype, backend=backend, precision=precision)
        scores.append(schedule_scores(lm, shape))
        lm.detach()
    found = torch.corrcoef(torch.stack(scores))[0]
    return {"bfloat16": float(found[1]), "float32 in another order": float(found[2])}


def main() -> None:
    options = parser(__doc__, "dtype", "rounds")
    options.add_argument("--context", type=int, default=512)
    options.add_argument("--steps", type=int, default=16)
    options.add_argument("--no-agreement", action="store_true", help="leave the comparison of precisions out")
    asked = options.parse_args()
    lm = solm.load(asked.model, sparsity=SparsityConfig(page_size=PAGE), dtype=asked.dtype, backend="torch")
    few, more = (Shape(asked.context, texts, 16, asked.steps) for texts in (2, MORE))
    default = Shape(asked.context * 3 // 4, 4, 3, asked.steps * 16)
    runs = {shape: rollouts(lm, shape, asked.rounds) for shape in (few, more)}
    results = {
        "rollouts_per_second": {
            f"{shape.texts} texts": spread([shape.token_steps / one["total"] for one in rounds])
            for shape, rounds in runs.items()
        },
        "seconds": {name: statistics.median(one[name] for one in runs[few]) for name in runs[few][0]},
        "samples_per_second": {
            name: spread(sample_rates(lm, shape, asked.rounds)) for name, shape in (("same", few), ("default", default))
        },
        "peak_memory_gib": peak_memory_gib(),
    }
    lm.detach()
    if not asked.no_agreement:
        results["agreement_with_float32"] = agreement(asked.model, more)
    lines = [
        f"{part}, {name}: {rate['median']:.0f} token-steps per second ({rate['low']:.0f} to {rate['high']:.0f})"
        for part in ("rollouts_per_second", "samples_per_second")
        for name, rate in results[part].items()
    ]
    lines += [f"  {name:12} {seconds:.3f} s" for name, seconds in results["seconds"].items()]
    lines += [
        f"agreement with {name}: {value:.3f}" for name, value in results.get("agreement_with_float32", {}).items()
    ]
    finish("rollout", asked, results, lines)


if __name__ == "__main__":
    main()
