"""Controlled token-steps per second of training, prefill included.

SmolLM2-135M, context 512, 2 sequences x 16 schedules x 16 steps, joint-27, pages of 8: rollouts of a policy that reads
h(t-1), step by step (`--method grpo`), the same with 8 sequences, and random schedules scored in one pass beside the
dense run (`--method values`; the dense run is not counted). Then the latter in its default shape, 4 x 3 x 256 after
384. `agreement` tells how much of what sets schedules of one text apart is rounding: the correlation of their mean
log-probabilities, texts' averages taken off, in float32 with those of other arithmetic.

    python benchmarks/rollout.py
    python benchmarks/rollout.py --json --dtype float32
"""

import json
import time

import torch

from solm.core.actions import ActionSpace
from solm.core.budget import Budget
from solm.core.sparsity import SparsityConfig
from solm.policies.learned import LearnedPolicy
from solm.policies.network import NetworkConfig, PolicyNetwork
from solm.runtime.drive import teacher_forced
from solm.training.counterfactual import collect_samples, draw_levels
from timing import arguments, draw_text, load, machine, median, peak_memory_gib, seconds_inside

CONTEXT, SEQUENCES, ROLLOUTS, STEPS, SPACE, PAGE = 512, 2, 16, 16, "joint-27", 8
MORE = 8  # sequences


def sample_rates(lm, context: int, sequences: int, schedules: int, steps: int, rounds: int) -> list[float]:  # type: ignore[no-untyped-def]
    """Token-steps per second of random schedules, the dense run beside them not counted, once per round."""
    space = ActionSpace.preset(SPACE)
    windows = draw_text(lm, sequences, context + steps + 1)
    rates = []
    for index in range(rounds + 1):
        before, after = draw_levels(space, sequences, schedules, steps, torch.Generator().manual_seed(index))
        begun = time.perf_counter()
        collect_samples(lm, windows, context, 4, before, after, space)
        rates.append(sequences * schedules * steps / (time.perf_counter() - begun))
    return rates[1:]


def rollouts(lm, windows: torch.Tensor, policy: LearnedPolicy, rounds: int) -> list[dict[str, float]]:  # type: ignore[no-untyped-def]
    """Seconds of every round, by what they went into."""
    target = Budget.from_net(0.7, policy.space).tensor(len(windows) * ROLLOUTS)
    following = windows[:, CONTEXT:].repeat_interleave(ROLLOUTS, 0)
    found = []
    for index in range(rounds + 1):
        generator = torch.Generator().manual_seed(index)
        with seconds_inside(model=lm.model, policy=policy.network) as inside:
            begun = time.perf_counter()
            session = lm.session(capacity=CONTEXT)
            session.prefill(windows[:, :CONTEXT])
            prefilled, prefill_model = time.perf_counter(), inside["model"]
            forks = session.fork(ROLLOUTS, capacity=STEPS + PAGE)
            teacher_forced(forks, policy, following, target, generator, record=True)
            total = time.perf_counter() - begun
        spent = {
            "prefill": prefilled - begun, "model_steps": inside["model"] - prefill_model, "policy": inside["policy"],
        }  # fmt: skip
        found.append({"total": total, **spent, "rest": total - sum(spent.values())})
    return found[1:]  # the first round pays for warm-up


def schedule_scores(lm, windows: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Mean log-probability of each of the same random schedules [texts, schedules], the text's average taken off."""
    space, count = ActionSpace.preset(SPACE), len(windows)
    session = lm.session(capacity=CONTEXT)
    session.prefill(windows[:, :CONTEXT])
    forks = session.fork(ROLLOUTS, capacity=STEPS + 16)
    following = windows[:, CONTEXT:].repeat_interleave(ROLLOUTS, 0)
    target = Budget.from_net(0.7, space).tensor(count * ROLLOUTS)
    run = teacher_forced(forks, lm.policy("random", space), following, target, torch.Generator().manual_seed(0))
    scores = run.log_probabilities.double().mean(1).unflatten(0, (count, ROLLOUTS))
    return scores - scores.mean(1, keepdim=True)


def agreement() -> dict[str, float]:
    """Correlation of `schedule_scores` with those of the torch backend in float32: in bfloat16, and on the native
    backend, which adds up the same float32 numbers in another order."""
    scores = []
    for dtype, native in (("float32", False), ("bfloat16", False), ("float32", True)):
        lm, windows = load(dtype, SparsityConfig(), MORE, CONTEXT + STEPS + 1)
        if native:
            lm.compile("float32")
        scores.append(schedule_scores(lm, windows).flatten())
        lm.detach()
    found = torch.corrcoef(torch.stack(scores))[0]
    return {"bfloat16": float(found[1]), "float32 in another order": float(found[2])}


def main() -> None:
    options = arguments(__doc__)

    space = ActionSpace.preset(SPACE)
    lm, windows = load(options.dtype, SparsityConfig(page_size=PAGE), SEQUENCES, CONTEXT + STEPS + 1)
    torch.manual_seed(0)
    network = PolicyNetwork(NetworkConfig(base_hidden=lm.control.shapes.hidden, actions=len(space))).eval()
    policy = LearnedPolicy(network, space, clamp=False)

    shapes = {"same_shape": (CONTEXT, SEQUENCES, ROLLOUTS, STEPS), "default_shape": (384, 4, 3, 256)}
    samples = {name: sample_rates(lm, *shape, options.rounds) for name, shape in shapes.items()}
    runs = {
        count: rollouts(lm, draw_text(lm, count, windows.shape[1]), policy, options.rounds)
        for count in (SEQUENCES, MORE)
    }
    rates = {count: [count * ROLLOUTS * STEPS / r["total"] for r in rounds] for count, rounds in runs.items()}
    memory, rounds = peak_memory_gib(), runs[SEQUENCES]
    lm.detach()
    result = {
        "token_steps_per_second": median(rates[SEQUENCES]),
        "range": [min(rates[SEQUENCES]), max(rates[SEQUENCES])],
        "with_more_sequences": {
            "sequences": MORE,
            "median": median(rates[MORE]),
            "range": [min(rates[MORE]), max(rates[MORE])],
        },
        "samples_per_second": {name: [median(r), min(r), max(r)] for name, r in samples.items()},
        "agreement_with_float32": agreement(),
        "peak_memory_gib": memory,
        "seconds": {name: median([r[name] for r in rounds]) for name in rounds[0]},
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "rounds": options.rounds,
        "machine": machine(),
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"after {CONTEXT} tokens, {SPACE}, {result['dtype']}; peak memory {result['peak_memory_gib']:.2f} GiB")
    for count, found in rates.items():
        print(
            f"{count} x {ROLLOUTS} x {STEPS} steps: {median(found):.0f} token-steps per second (median of "
            f"{options.rounds}; {min(found):.0f} to {max(found):.0f})"
        )
    for name, value in result["agreement_with_float32"].items():
        print(f"agreement of float32 with {name}: {value:.3f}")
    for name, (middle, low, high) in result["samples_per_second"].items():
        print(f"random schedules, {name}: {middle:.0f} token-steps per second ({low:.0f} to {high:.0f})")
    for name, seconds in result["seconds"].items():
        print(f"  {name:12} {seconds:.3f} s  {100 * seconds / result['seconds']['total']:5.1f} %")


if __name__ == "__main__":
    main()
