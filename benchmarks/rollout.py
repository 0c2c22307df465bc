"""Controlled token-steps per second of training, prefill included.

SmolLM2-135M, context 512, 2 sequences x 16 schedules x 16 steps, joint-27, pages of 8: rollouts of a policy that reads
h(t-1), step by step (`--method grpo`), and random schedules scored in one pass beside the dense run (`--method
values`; the dense run is not counted). Then the latter in its default shape, 4 x 3 x 256 after 384.

    python benchmarks/rollout.py
    python benchmarks/rollout.py --json --dtype float32
"""

import json
import time

import torch

from solm.actions import ActionSpace
from solm.budget import Budget
from solm.decoding.drive import teacher_forced
from solm.policies.learned import LearnedPolicy
from solm.policies.network import NetworkConfig, PolicyNetwork
from solm.semantics import Semantics
from solm.training.counterfactual import collect_samples, draw_levels
from timing import arguments, draw_text, load, machine, median, peak_memory_gib, seconds_inside

CONTEXT, SEQUENCES, ROLLOUTS, STEPS, SPACE, PAGE = 512, 2, 16, 16, "joint-27", 8


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


def main() -> None:
    options = arguments(__doc__)

    space = ActionSpace.preset(SPACE)
    lm, windows = load(options.dtype, Semantics(page_size=PAGE), SEQUENCES, CONTEXT + STEPS + 1)
    torch.manual_seed(0)
    network = PolicyNetwork(NetworkConfig(base_hidden=lm.control.shapes.hidden, actions=len(space))).eval()
    policy = LearnedPolicy(network, space, clamp=False)
    target = Budget.from_net(0.7, space).tensor(SEQUENCES * ROLLOUTS)
    following = windows[:, CONTEXT:].repeat_interleave(ROLLOUTS, 0)

    shapes = {"same_shape": (CONTEXT, SEQUENCES, ROLLOUTS, STEPS), "default_shape": (384, 4, 3, 256)}
    samples = {name: sample_rates(lm, *shape, options.rounds) for name, shape in shapes.items()}
    rounds = []
    for index in range(options.rounds + 1):
        generator = torch.Generator().manual_seed(index)
        with seconds_inside(model=lm.model, policy=network) as inside:
            begun = time.perf_counter()
            session = lm.session(capacity=CONTEXT)
            session.prefill(windows[:, :CONTEXT])
            prefilled, prefill_model = time.perf_counter(), inside["model"]
            forks = session.fork(ROLLOUTS, capacity=STEPS + PAGE)
            teacher_forced(forks, policy, following, target, generator, record=True)
            total = time.perf_counter() - begun
        stepping = inside["model"] - prefill_model
        rounds.append(
            {
                "total": total,
                "prefill": prefilled - begun,
                "model_steps": stepping,
                "policy": inside["policy"],
                "rest": total - (prefilled - begun) - stepping - inside["policy"],
            }
        )
    rounds = rounds[1:]  # the first round pays for warm-up
    steps = SEQUENCES * ROLLOUTS * STEPS
    rates = [steps / r["total"] for r in rounds]
    result = {
        "token_steps_per_second": median(rates),
        "range": [min(rates), max(rates)],
        "samples_per_second": {name: [median(r), min(r), max(r)] for name, r in samples.items()},
        "peak_memory_gib": peak_memory_gib(),
        "seconds": {name: median([r[name] for r in rounds]) for name in rounds[0]},
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "rounds": options.rounds,
        "machine": machine(),
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"{SEQUENCES} x {ROLLOUTS} x {STEPS} steps after {CONTEXT} tokens, {SPACE}, {result['dtype']}")
    print(
        f"token-steps per second: {result['token_steps_per_second']:.0f} (median of {options.rounds}; "
        f"{min(rates):.0f} to {max(rates):.0f}); peak memory {result['peak_memory_gib']:.2f} GiB"
    )
    for name, (middle, low, high) in result["samples_per_second"].items():
        print(f"random schedules, {name}: {middle:.0f} token-steps per second ({low:.0f} to {high:.0f})")
    for name, seconds in result["seconds"].items():
        print(f"  {name:12} {seconds:.3f} s  {100 * seconds / result['seconds']['total']:5.1f} %")


if __name__ == "__main__":
    main()
