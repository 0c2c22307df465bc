"""lm-eval tasks over local files: all arms on the same questions."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from solm.cli.eval import lm_eval
from solm.core.actions import ActionSpace
from solm.core.errors import DataError, SolmError
from solm.core.sparsity import Allocation
from solm.data.windows import stream_of

pytest.importorskip("lm_eval")
from solm.evaluation import tasks as module
from solm.evaluation.arms import Arm
from solm.evaluation.local_tasks import load_tasks
from solm.evaluation.show import never_acted, task_table
from solm.evaluation.tasks import TaskSettings, evaluate_tasks
from solm.policies.schedules import Dense, Static

FRUIT = ["apple", "pear", "plum", "fig"]


def prompt(task, index: int = 0) -> tuple[str, object]:
    document = list(task.eval_docs)[index]
    return task.doc_to_text(document), task.doc_to_target(document)


def test_local_tasks_ask_in_lm_evals_own_words(questions):
    wanted = ["arc_easy", "openbookqa", "hellaswag", "piqa", "winogrande", "lambada_openai", "mmlu"]
    found = load_tasks(wanted, questions)
    assert list(found) == wanted
    assert list(found["mmlu"]) == ["mmlu_anatomy"]
    # Half of so few questions are examples.
    assert prompt(found["arc_easy"]["arc_easy"]) == ("Question: Which is fruit 12?\nAnswer:", 2)
    assert prompt(found["openbookqa"]["openbookqa"]) == ("Fruit 12 grows on a", 1)
    assert prompt(found["piqa"]["piqa"])[0].endswith("?\nAnswer:")
    assert prompt(found["lambada_openai"]["lambada_openai"])[1] == " home"
    assert prompt(found["mmlu"]["mmlu_anatomy"], 1)[0] == (
        'What, "1", is test?\nA. apple\nB. pear\nC. plum\nD. fig\nAnswer:'
    )
    lines = load_tasks(["longeval_lines"], questions)["longeval_lines"]["longeval_lines"]
    assert prompt(lines) == ("line big-cat: <417> 12\nWhat is it?\nline big-cat: REGISTER_CONTENT is", " <417>")
    task = found["winogrande"]["winogrande"]
    document = next(iter(task.eval_docs))
    assert task.doc_to_choice(document) == ["Ann met Eve 12 because Ann", "Ann met Eve 12 because Eve"]
    assert task.doc_to_target(document) == "was there."
    assert task.doc_to_text(document) == 1


def test_all_arms_answer_the_same_questions_at_what_was_asked(tiny_lm, questions, tmp_path, capsys):
    space = ActionSpace(mlp=(0.4, 1.0), bits=(5, 16))
    settings = TaskSettings(tasks=("arc_easy", "lambada_openai"), budgets=(0.8,), limit=6, fewshot=3, batch=4)
    tasks = load_tasks(list(settings.tasks), questions)
    calls = []
    result = evaluate_tasks(tiny_lm, tasks, settings, space, progress=lambda done, total: calls.append((done, total)))
    assert [point.arm for point in result.points] == ["dense", "uniform", "random"] * 2
    assert all(point.questions == 6 for point in result.points)
    assert calls[0] == (0, 36), "two tasks of 6 questions, three runs each"
    assert calls[-1] == (36, 36)
    assert calls == sorted(calls)
    assert len(set(calls)) > 7, "also inside a run"
    assert capsys.readouterr().err == "", "no bars beside that of the command"
    uniform = result.points[1]
    assert uniform.requested["net"] == pytest.approx(0.8)
    assert uniform.realised["net"] == pytest.approx(0.8, abs=0.03)
    assert result.points[0].realised["net"] == 1
    assert result.points[4].scores["margin"] < 0  # no choice: the target's own log-likelihood
    assert never_acted(result) == []  # both axes of this space act in contexts of any length
    short = evaluate_tasks(
        tiny_lm, tasks, settings.model_copy(update={"fewshot": 0}), ActionSpace(attention=(0.2, 1.0))
    )
    [line] = [line for line in never_acted(short) if line.startswith("lambada_openai")]
    assert "the axis attention was never controlled" in line
    assert "lambada_openai" in str(task_table(result).columns[0]._cells)


def test_uniform_ignores_the_allocation(tiny_lm, questions, monkeypatch):
    space = ActionSpace(mlp=(0.4, 1.0))
    settings = TaskSettings(tasks=("arc_easy",), budgets=(0.85,), limit=6, fewshot=3, batch=4)
    tasks = load_tasks(["arc_easy"], questions)
    plain = evaluate_tasks(tiny_lm, tasks, settings, space)
    line = np.arange(21) / 20
    more, less = (tuple((line + sign * 0.8 * line * (1 - line)).round(9).tolist()) for sign in (1, -1))
    layers = tiny_lm.shapes.layers
    monkeypatch.setattr(
        tiny_lm, "sparsity", tiny_lm.sparsity.under(Allocation(attention=(more,) * layers, mlp=(less,) * layers))
    )
    dealt = evaluate_tasks(tiny_lm, tasks, settings, space)
    dealt, plain = ({point.arm: point for point in result.points} for result in (dealt, plain))
    assert dealt["uniform"].scores == plain["uniform"].scores
    assert dealt["uniform"].realised == plain["uniform"].realised
    assert dealt["allocated"].scores != plain["uniform"].scores


CHOICES = ["he fell.", "it rained."]


@pytest.mark.parametrize(("target", "margin"), [(0, -4), (1, 4), ("1", 4), ("it rained.", 4), ("he fell.", -4)])
def test_the_margin_is_that_of_the_right_choice(target, margin):
    task = SimpleNamespace(OUTPUT_TYPE="multiple_choice", doc_to_choice=lambda document: CHOICES)
    sample = {"doc": {}, "resps": [[(-5.0, False)], [(-1.0, True)]], "target": target}
    assert module._answer(task, sample) == {"margin": margin}


@pytest.mark.parametrize("target", ["it snowed.", 2, -1, [0, 1], None])
def test_a_target_that_is_no_choice_is_refused(target):
    config = SimpleNamespace(task="made-up")
    task = SimpleNamespace(OUTPUT_TYPE="multiple_choice", doc_to_choice=lambda document: CHOICES, config=config)
    with pytest.raises(SolmError, match=r"task made-up has the target .*, none of its 2 choices"):
        module._answer(task, {"doc": {}, "resps": [[(-5.0, False)], [(-1.0, True)]], "target": target})


def test_where_beginnings_differ_the_margin_is_that_of_the_right_beginning(questions):
    task = load_tasks(["winogrande"], questions)["winogrande"]["winogrande"]
    document = next(iter(task.eval_docs))
    sample = {"doc": document, "resps": [[(-5.0, False)], [(-1.0, True)]], "target": task.doc_to_target(document)}
    assert module._answer(task, sample) == {"margin": 4}, "the second of them is right"


def test_an_interrupted_run_goes_on(tiny_lm, questions, tmp_path):
    space, partial = ActionSpace(mlp=(0.4, 1.0)), tmp_path / "partial"
    settings = TaskSettings(tasks=("openbookqa",), budgets=(0.8,), limit=4, fewshot=5)
    tasks = load_tasks(["openbookqa"], questions)

    def stop(done: int, total: int) -> None:
        if done > 2 * settings.limit:  # in the third run
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_tasks(tiny_lm, tasks, settings, space, partial=partial, progress=stop)
    kept = json.loads(partial.read_text())["parts"]
    assert sorted(kept) == ["openbookqa/dense@1", "openbookqa/uniform@0.8"]
    calls = []
    whole = evaluate_tasks(
        tiny_lm, tasks, settings, space, partial=partial, progress=lambda done, total: calls.append((done, total))
    )
    assert calls[0] == (8, 12), "what was known is not counted as done in no time"
    again = evaluate_tasks(tiny_lm, tasks, settings, space)
    assert whole.points == again.points
    assert partial.exists()  # until the result is written


def test_a_partial_file_of_other_questions_or_another_tuning_text_is_not_continued(
    tiny_lm, questions, tmp_path, byte_tokenizer
):
    space, partial = ActionSpace(mlp=(0.4, 1.0)), tmp_path / "partial"
    settings = TaskSettings(tasks=("openbookqa",), budgets=(0.8,), limit=2, fewshot=0)
    other = tmp_path / "other"
    other.mkdir()
    text = (questions / "openbook_qa.jsonl").read_text()
    (other / "openbook_qa.jsonl").write_text(text.replace("grows on a", "falls from a"))
    tuning = stream_of(["Some text."], byte_tokenizer, "text")
    keys = set()
    for folder, tuned_on in ((questions, None), (other, None), (other, tuning)):
        tasks = load_tasks(["openbookqa"], folder)
        found = evaluate_tasks(tiny_lm, tasks, settings, space, partial=partial, tuning=tuned_on)
        assert found.points == evaluate_tasks(tiny_lm, tasks, settings, space).points
        keys.add(json.loads(partial.read_text())["key"])
    assert len(keys) == 3


def test_a_partial_file_of_a_rival_that_does_something_else_is_not_continued(tiny_lm, questions, tmp_path):
    space, partial = ActionSpace(mlp=(0.4, 1.0)), tmp_path / "partial"
    settings = TaskSettings(tasks=("openbookqa",), budgets=(0.8,), limit=2, fewshot=0)
    tasks = load_tasks(["openbookqa"], questions)
    for rival in (Static(space), Dense(space)):
        found = evaluate_tasks(tiny_lm, tasks, settings, space, {"rival": Arm(rival)}, partial)
        net = next(point.realised["net"] for point in found.points if point.arm == "rival")
        assert (net == 1) == isinstance(rival, Dense)


def test_more_examples_than_there_are_are_refused_at_once(tiny_lm, questions):
    tasks = load_tasks(["arc_easy"], questions)
    settings = TaskSettings(tasks=("arc_easy",), budgets=(0.8,), fewshot=1000)
    with pytest.raises(SolmError, match=r"1000 is out of range: the task arc_easy has \d+ examples"):
        evaluate_tasks(tiny_lm, tasks, settings, ActionSpace(mlp=(0.4, 1.0)))


def test_unknown_tasks_and_broken_files_are_named(questions, tmp_path):
    with pytest.raises(DataError, match="unknown task 'arc_esay'"):
        load_tasks(["arc_esay"], questions)
    with pytest.raises(DataError, match="there is no folder"):
        load_tasks(["arc_easy"], tmp_path / "none")
    (tmp_path / "piqa.jsonl").write_text('{"query": "half')
    with pytest.raises(DataError, match=r"piqa\.jsonl"):
        load_tasks(["piqa"], tmp_path)


@pytest.mark.parametrize(("module", "error"), [("lm_eval.config.evaluate_config", SolmError), ("numpy", ValueError)])
def test_a_mistake_in_the_arguments_of_lm_eval_is_one_line(module, error, monkeypatch):
    made = {"__name__": module}
    exec("def fail():\n    raise ValueError('Tasks not found: nosuch')", made)
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", made["fail"])
    monkeypatch.setattr("sys.argv", [])
    with pytest.raises(error, match="Tasks not found: nosuch"):
        lm_eval(SimpleNamespace(args=["--tasks", "nosuch"]))


def test_data_that_the_hub_does_not_give_is_one_line(monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("Couldn't reach the hub\nand more")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(DataError, match="cannot read the data of task piqa from the hub; give a folder") as error:
        load_tasks(["piqa"], None)
    assert "\n" not in str(error.value)
