"""The page about evaluations: it stands alone and escapes what results say."""

from helpers.evaluation import SHORT
from helpers.texts import FISH as TEXT
from solm.evaluation.perplexity import evaluate
from solm.evaluation.report import render
from solm.evaluation.texts import stream_of


def test_examples_are_the_texts_that_were_scored(result, value_lm, byte_tokenizer):
    assert [example.budget for example in result.examples] == [0.6, 0.8] * 2
    for example in result.examples:
        assert "".join(token.text for token in example.tokens) in "Say 42 <b>.\n" + TEXT
        assert len(example.tokens) == SHORT.length
        assert all(0 < token.cost <= 1.5 and token.nats > 0 for token in example.tokens)
        assert {token.action for token in example.tokens} <= {action.tag for action in value_lm.space.actions}
    none = SHORT.model_copy(update={"examples": 0})
    assert evaluate(value_lm, [stream_of([TEXT], byte_tokenizer, "fish")], none).examples == []


def test_a_page_stands_alone(result):
    page = render([("after 60 tokens", result)])
    point = result.arm("uniform", 0.6)
    for words in (
        "after 60 tokens", f"<td>{point.divergence:.4f}<td><span class=", "divergence: policy − arm",
        "Texts under the policy",
        f"[{point.divergence_difference.low:+.4f}, ", result.environment["machine"]["processor"],
    ):  # fmt: skip
        assert words in page
    assert page.count("data:image/png;base64,") == 1
    assert page.count("class=reply") == 4
    assert "http" not in page
    assert "<script" not in page


def test_a_page_escapes_all_that_a_result_says_of_itself(result):
    names = ("model", "dtype", "texts", "length", "context", "data")
    for name in names:
        result.settings[name] = f"<{name}>"
    result.settings["budgets"] = []
    result.environment = {"commit": "<commit>", "machine": {"processor": "<processor>"}}
    result.examples[0].tokens[0].text = "<b>&'"
    page = render([("<name>", result)])
    for name in (*names, "commit", "processor", "name"):
        assert f"<{name}>" not in page
        assert f"&lt;{name}&gt;" in page
    assert "&lt;b&gt;&amp;" in page
