"""What a policy did is counted right; a page shows any results, and refuses those that do not belong together."""

import pytest

from helpers.evaluation import SHORT
from helpers.texts import FISH as TEXT
from solm.core.actions import AXES
from solm.core.errors import DamagedFileError, SolmError
from solm.data.windows import stream_of
from solm.evaluation.perplexity import evaluate
from solm.evaluation.pictures import kind_of, violins
from solm.evaluation.report.actions import histograms, texts
from solm.evaluation.report.combined import render
from solm.evaluation.report.read import read_results
from solm.evaluation.use import CLASSES, token_class

SAID = ("model", "dtype", "texts", "length", "context", "data")


@pytest.mark.parametrize(
    ("text", "found"),
    [(" the", 0), ("The", 1), ("ing", 1), (" 42", 2), ("7", 2), (",", 3), (' "', 3), ("\n\n", 4), ("  ", 4), ("", 4)],
)
def test_classes_of_tokens(text, found):
    assert token_class(text) == CLASSES[found]
    assert token_class("</s>", special=True) == "special"


def test_levels_are_counted_at_every_position_and_class(result, value_lm):
    space, counted = value_lm.space, SHORT.texts * SHORT.length
    assert [use.budget for use in result.use] == [0.6, 0.8]
    for use in result.use:
        assert [group.group for group in use.positions] == ["1 to 16", "17 to 32", "33 to 40"]
        for groups in (use.positions, use.classes):
            for axis, size in zip(AXES, space.shape, strict=True):
                assert sum(sum(group.counts[axis]) for group in groups) == counted
                assert all(len(group.counts[axis]) == size for group in groups)
        # The levels that were counted are those that the budget paid for.
        mlp = sum(
            level * group.counts["mlp"][index]
            for group in use.positions for index, level in enumerate(space.mlp)
        )  # fmt: skip
        assert mlp / counted == pytest.approx(result.arm("policy", use.budget).axes["mlp"], abs=0.03)
    assert {group.group for group in result.use[0].classes} <= set(CLASSES)
    assert "begins a word" not in {group.group for group in result.use[0].classes}  # a byte is never a space and more


def test_examples_are_the_texts_that_were_scored(result, value_lm, byte_tokenizer):
    assert [example.budget for example in result.examples] == [0.6, 0.8] * 2
    for example in result.examples:
        assert "".join(token.text for token in example.tokens) in "Say 42 <b>.\n" + TEXT
        assert len(example.tokens) == SHORT.length
        assert all(0 < token.cost <= 1.5 and token.nats > 0 for token in example.tokens)
        assert {token.action for token in example.tokens} <= {action.tag for action in value_lm.space.actions}
    none = evaluate(
        value_lm, [stream_of([TEXT], byte_tokenizer, "fish")], SHORT.model_copy(update={"examples": 0})
    )  # fmt: skip
    assert none.examples == []


def test_trials_are_those_behind_the_random_arms(result):
    for trials in result.trials:
        assert len(trials.nats) == 6
        assert min(trials.nats) == pytest.approx(result.arm("best-of-6", trials.budget).nats)
        assert sum(trials.nats) / 6 == pytest.approx(result.arm("random", trials.budget).nats)
    assert violins(result).startswith(b"\x89PNG")
    assert b"<svg" in violins(result, "svg")


def test_a_page_of_everything_stands_alone(result, tmp_path):
    (tmp_path / "eval.json").write_text(result.model_dump_json(indent=2))
    page = render(read_results([tmp_path / "eval.json"]))
    point = result.arm("uniform", 0.6)
    low = f"{point.divergence_difference.low:+.4f}"
    assert f"<td>{point.divergence:.4f}<td>" in page
    for words in (
        "policy − arm, divergence",
        f"[{low}, ",
        "Random search",
        "by position",
        "Texts under the policy",
        "budget kept",
    ):
        assert words in page
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page
    assert "<script" not in page


def test_texts_are_escaped(result):
    result.examples[0].tokens[0].text = "<b>&'"
    shown = texts(result)
    assert "&lt;b&gt;&amp;" in shown
    assert shown.count("class=reply") == 4
    assert histograms(result).count("<details") == 2


def test_a_page_escapes_all_that_a_file_says_of_itself(result, tmp_path):
    for name in SAID:
        result.settings[name] = f"<{name}>"
    result.settings["budgets"] = []
    result.environment = {"commit": "<commit>", "machine": {"processor": "<processor>"}}
    (tmp_path / "eval.json").write_text(result.model_dump_json())
    page = render(read_results([tmp_path / "eval.json"]))
    for name in (*SAID, "commit", "processor"):
        assert f"<{name}>" not in page
        assert f"&lt;{name}&gt;" in page


@pytest.mark.parametrize("place", ["environment.commit", "environment.machine.processor", "settings.dtype"])
def test_a_result_without_what_a_page_tells_is_damaged(result, tmp_path, place):
    *folders, name = place.split(".")
    within = getattr(result, folders[0])
    for folder in folders[1:]:
        within = within[folder]
    del within[name]
    (tmp_path / "eval.json").write_text(result.model_dump_json())
    with pytest.raises(DamagedFileError, match=f"eval.json is damaged: {place}: it is missing"):
        read_results([tmp_path / "eval.json"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"kind": "evaluation", "schema_version": 2}', "schema version 2; this solm reads 3"),
        ('{"kind": "tasks", "points": []}', "schema version None"),
        ('{"kind": "kv-drift", "schema_version": 3}', "kind 'kv-drift'; a report reads evaluation and tasks"),
        ('{"points": []}', "kind None"),
        ('{"kind": "evaluation", "schema_version": 3, "command": "x"}', "damaged: settings: Field required"),
        ("[1, 2]", "holds a list, not an object"),
        ('{"schema_version": 2, "poi', "half-written"),
        ("", "half-written"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, content, words):
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(DamagedFileError, match=words) as caught:
        read_results([path])
    assert "\n" not in str(caught.value)
    assert "result.json" in str(caught.value)


def test_no_file_and_an_empty_one(tmp_path):
    with pytest.raises(SolmError, match=r"cannot read .*missing\.json"):
        read_results([tmp_path / "missing.json"])
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(SolmError, match="no results"):
        read_results([tmp_path / "empty.jsonl"])


def test_pictures_are_png_or_svg(tmp_path):
    assert kind_of(tmp_path / "a.svg") == "svg"
    assert kind_of(None) == "png"
    with pytest.raises(SolmError, match=r"a\.pdf: a picture is \.png or \.svg"):
        kind_of(tmp_path / "a.pdf")
