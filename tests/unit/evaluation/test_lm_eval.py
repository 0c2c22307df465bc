"""The model class for lm-eval against lm-eval's own."""

import pytest
import torch

import solm
from helpers.models import tiny_model
from solm.core.errors import SolmError

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance

from solm.evaluation.lm_eval import ControlledLM


def test_the_harness_tells_what_was_spent_and_what_never_acted(tiny_lm, caplog):
    caplog.set_level("INFO", "lm_eval.solm")
    ours = ControlledLM(tiny_lm, space="joint-8", budget="keep=0.7")
    ours.loglikelihood([Instance("loglikelihood", {}, ("Too short for attention", " to be controlled"), 0)])
    assert "the axis attention never acted" in caplog.text
    assert "the axis mlp" not in caplog.text
    assert ours.compute.realised["mlp"] < 1
    caplog.clear()
    ours.loglikelihood([Instance("loglikelihood", {}, ("Long enough to be controlled. " * 8, " at last"), 0)])
    assert "spent: attention" in caplog.text
    assert "never acted" not in caplog.text
    assert ours.compute.realised["attention"] < 1


def test_the_harness_scores_as_lm_evals_own_model_does(byte_tokenizer):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    texts = [("The capital of France is", " Paris"), ("The capital of France is", " Rome"), ("2 + 2 =", " 4")]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(texts)]
    rolling = [Instance("loglikelihood_rolling", {}, ("A longer text " * 20,), 0)]
    with solm.attach(tiny_model("llama", torch.float32), tokenizer=byte_tokenizer) as lm:
        stock = huggingface.HFLM(lm.model, tokenizer=byte_tokenizer)
        ours = ControlledLM(lm)
        for mine, theirs in zip(ours.loglikelihood(requests), stock.loglikelihood(requests), strict=True):
            assert mine[0] == pytest.approx(theirs[0], abs=1e-3)
            assert mine[1] == theirs[1]
        assert ours.loglikelihood_rolling(rolling) == pytest.approx(stock.loglikelihood_rolling(rolling), abs=1e-2)
        assert ours.compute.realised["net"] == 1
        generation = [Instance("generate_until", {}, ("Once", {"until": ["zzz"], "max_gen_toks": 6}), 0)]
        assert ours.generate_until(generation) == stock.generate_until(generation)


def test_a_prompt_loses_its_beginning_where_it_leaves_no_room_for_the_reply(tiny_lm):
    def ask(model: ControlledLM, prompt: str, longest: int) -> list[str]:
        asked = (prompt, {"until": ["zzz"], "max_gen_toks": longest})
        return model.generate_until([Instance("generate_until", {}, asked, 0)], disable_tqdm=True)

    short = ControlledLM(tiny_lm, max_length=10)
    assert ask(short, "abcdefghij", 7) == ask(ControlledLM(tiny_lm), "hij", 7)
    for longest in (0, 10, 12):
        with pytest.raises(SolmError, match=f"max_gen_toks must lie between 1 and 9, got {longest}"):
            ask(short, "abcdefghij", longest)


def test_a_text_ends_at_a_stop_across_tokens(tiny_lm):
    ours = ControlledLM(tiny_lm)

    def ask(*stops: str) -> str:
        asked = ("Once upon a time", {"until": list(stops), "max_gen_toks": 24})
        return ours.generate_until([Instance("generate_until", {}, asked, 0)], disable_tqdm=True)[0]

    whole = ask("zzz")
    stop = whole[5:8]
    assert ask("zzz", stop) == whole[: whole.index(stop)]


def test_the_harness_scores_alike_on_both_backends_and_tells_milliseconds(byte_tokenizer):
    shared = "All of these begin alike, with a sentence that is long enough. "
    pairs = [(f"{shared}Question {number}?", answer) for number in range(5) for answer in (" yes", " no")]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    model, how = tiny_model("llama", torch.float32), "cpu"
    found = []
    for backend, precision in (("torch", None), ("cpu", "float32")):
        with solm.attach(model, tokenizer=byte_tokenizer, backend=backend, precision=precision, sparsity=how) as lm:
            asked = {"space": "cpu-wide", "budget": "keep=0.8"}
            ours = ControlledLM(lm, **asked)
            found.append([score for score, _ in ours.loglikelihood(requests, disable_tqdm=True)])
            assert ours.compute.realised["mlp"] == pytest.approx(ours.compute.requested["mlp"], abs=0.02)
            assert "time" not in ours.compute.realised
    assert found[0] == pytest.approx(found[1], abs=1e-3)
