"""lm-eval's own tasks, read from local copies of their data.

Prompts, targets and metrics are lm-eval's; only where the documents come from differs, so that whoever is online runs
the same tasks against the hub.
"""

import csv
import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from solm.core.errors import DataError

Record = dict[str, Any]
_LABELS = "ABCDEFGHIJ"
_EXAMPLES = 16
"""First records of a file that has no other examples: shown before questions, never asked."""


def _question(record: Record) -> Record:
    """ARC as the hub has it."""
    return _labelled(record, "question", record["query"].removeprefix("Question: "))


def _stem(record: Record) -> Record:
    """OpenBookQA as the hub has it."""
    return _labelled(record, "question_stem", record["query"])


def _labelled(record: Record, name: str, text: str) -> Record:
    labels = list(_LABELS[: len(record["choices"])])
    return {
        name: text, "choices": {"text": record["choices"], "label": labels}, "answerKey": labels[record["gold"]],
    }  # fmt: skip


def _ending(record: Record) -> Record:
    """HellaSwag after lm-eval's preprocessing."""
    return {**record, "label": str(record["gold"])}


def _solutions(record: Record) -> Record:
    first, second = record["choices"]
    goal = record["query"].removeprefix("Question: ").removesuffix("\n")
    return {"goal": goal, "sol1": first, "sol2": second, "label": record["gold"]}


def _sentence(record: Record) -> Record:
    """WinoGrande: two sentences that differ up to where they go on alike."""
    first, second = (option.split(" ") for option in record["context_options"])
    shared = 0
    while first[shared : shared + 1] == second[shared : shared + 1] and shared < len(first) - 1:
        shared += 1
    options = " ".join(first[shared:]), " ".join(second[shared:])
    before = " ".join([*first[:shared], ""])
    return {
        "sentence": f"{before}_ {record['continuation']}", "option1": options[0], "option2": options[1],
        "answer": str(record["gold"] + 1),
    }  # fmt: skip


def _passage(record: Record) -> Record:
    return {"text": f"{record['context']} {record['continuation'].strip(' ')}"}


def _register(record: Record) -> Record:
    """LongEval's lines: the answer in the words of the line that holds it."""
    line = record["random_idx"][0]
    text = f"{record['prompt'].rstrip()}\nline {line}: REGISTER_CONTENT is"
    return {"prompt": text, "answer": f" <{record['expected_number']}>"}


def _needle(record: Record) -> Record:
    return {"prompt": record["input"], "answer": f" {record['outputs'][0]}"}


# Name of the task: file, split that lm-eval evaluates, and a record of the file as a document of the hub.
_FILES: dict[str, tuple[str, str, Callable[[Record], Record]]] = {
    "arc_easy": ("arc_easy.jsonl", "test", _question),
    "arc_challenge": ("arc_challenge.jsonl", "test", _question),
    "hellaswag": ("hellaswag_val.jsonl", "validation", _ending),
    "piqa": ("piqa.jsonl", "validation", _solutions),
    "winogrande": ("winogrande.jsonl", "validation", _sentence),
    "openbookqa": ("openbook_qa.jsonl", "test", _stem),
    "lambada_openai": ("lambada_openai.jsonl", "test", _passage),
    "longeval_lines": ("longeval_200_lines.jsonl", "test", _register),
    "niah_multikey": ("ruler_niah_multikey3_4k.jsonl", "test", _needle),
}
_RETRIEVAL: Record = {
    "output_type": "loglikelihood", "doc_to_text": "{{prompt}}", "doc_to_target": "{{answer}}", "target_delimiter": "",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}  # fmt: skip
"""What lm-eval has no likelihood task for: is the string to be found what greedy decoding would give?"""
_OWN = ("longeval_lines", "niah_multikey")


def names(data: Path) -> list[str]:
    """The tasks that the folder `data` has files for; MMLU's subjects as ``mmlu_...``."""
    found = [name for name, (file, _, _) in _FILES.items() if (data / file).is_file()]
    subjects = sorted(path.name.removesuffix("_test.csv") for path in (data / "mmlu/test").glob("*_test.csv"))
    return found + [f"mmlu_{subject}" for subject in subjects]


def load_tasks(wanted: list[str], data: Path | None) -> dict[str, dict[str, Task]]:
    """lm-eval's tasks for every name in `wanted`, over the files of the folder `data` where it has them.

    A name may stand for several tasks, such as ``mmlu`` for its subjects. Raises `DataError` for an unknown task, a
    missing folder or a malformed file.
    """
    if data is not None and not data.is_dir():
        raise DataError(f"there is no folder {data} to read tasks from; expected one with arc_easy.jsonl and so on")
    local = [] if data is None else names(data)
    manager = _manager()
    loaded: dict[str, dict[str, Task]] = {}
    for name in wanted:
        subjects = [known for known in local if known.startswith("mmlu_")] if name == "mmlu" else [name]
        members = [_override(known, data) for known in subjects if data is not None and known in local]
        if not members and name not in manager.task_index:
            known = f"; the data folder has {', '.join(k for k in local if k in _FILES)}, mmlu" if local else ""
            raise DataError(f"unknown task {name!r}: lm-eval has none of that name{known}")
        # As members of a group, changed keys are laid over lm-eval's own configuration of the task.
        spec = name if not members else members[0] if name in _OWN else {"group": f"local_{name}", "task": members}
        try:
            loaded[name] = manager.load([spec])["tasks"]
        except OSError as error:
            source = "the hub; give a folder with its file" if not members else data
            raise DataError(f"cannot read the data of task {name} from {source}: {_line(error)}") from error
    return loaded


def _line(error: Exception) -> str:
    """What went wrong, in one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)


@lru_cache
def _manager() -> TaskManager:
    """lm-eval's index of tasks; making it reads thousands of files."""
    return TaskManager()


def _override(name: str, data: Path) -> Record:
    """lm-eval's task `name` with its documents from `data`."""

    def read(**_: Any) -> DatasetDict:
        if name.startswith("mmlu_"):
            subject = name.removeprefix("mmlu_")
            return DatasetDict(
                {split: _dataset(data / "mmlu" / split / f"{subject}_{split}.csv") for split in ("test", "dev")}
            )
        file, split, convert = _FILES[name]
        every = _dataset(data / file, convert)
        shown = range(min(_EXAMPLES, len(every) // 2))
        return DatasetDict({"examples": every.select(shown), split: every.select(range(len(shown), len(every)))})

    changed: Record = {"task": name, "custom_dataset": read, **(_RETRIEVAL if name in _OWN else {})}
    if name in _FILES:
        changed |= dict.fromkeys(("training_split", "validation_split", "test_split"))
        changed |= {f"{_FILES[name][1]}_split": _FILES[name][1]}
        changed |= {"fewshot_split": "examples", "fewshot_config": {"sampler": "first_n"}}
    if name == "hellaswag":
        changed["process_docs"] = None
    return changed


def _dataset(path: Path, convert: Callable[[Record], Record] = lambda record: record) -> Dataset:
    try:
        return Dataset.from_list([convert(record) for record in _records(path)])
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    except (json.JSONDecodeError, KeyError, ValueError, IndexError, TypeError, csv.Error) as error:
        raise DataError(f"{path} does not hold what this task needs: {error!r}") from error


def _records(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            for row in csv.DictReader(file):
                choices = [row[f"choice{index}"] for index in range(4)]
                yield {"question": row["question"], "choices": choices, "answer": int(row["answer"])}
        else:
            yield from (json.loads(line) for line in file if line.strip())
