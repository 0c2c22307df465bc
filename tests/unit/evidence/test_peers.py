"""Peers: the process of one, its answers line by line, its errors; which are found; and the table of all engines."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

WORKER = Path(__file__).parents[3] / "evidence" / "bench" / "peer_worker.py"
LLAMA_CPP = """
import ctypes

__version__ = "imitation"
_Int, _Pointer = ctypes.c_int32, ctypes.POINTER(ctypes.c_int32)


class _Options(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("n_ctx", "n_batch", "n_seq_max")]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", _Int), ("token", _Pointer), ("pos", _Pointer), ("n_seq_id", _Pointer),
        ("seq_id", ctypes.POINTER(_Pointer)), ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


held = {}
llama_backend_init = llama_model_default_params = llama_synchronize = lambda *_: None
llama_context_default_params = _Options
llama_get_memory = lambda context: 1
llama_print_system_info = lambda: b"CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 0 | OPENMP = 1 | "


def llama_model_load_from_file(file, options):
    print("loading")
    return file != b"wrong.gguf"


def llama_init_from_model(model, options):
    return options.n_ctx


def llama_batch_init(tokens, embedding, rows):
    made = _Batch()
    made.token, made.pos, made.n_seq_id = ((_Int * tokens)() for _ in range(3))
    made.seq_id = (_Pointer * tokens)(*((_Int * rows)() for _ in range(tokens)))
    made.logits = (ctypes.c_int8 * tokens)()
    return made


def llama_memory_seq_rm(memory, row, first, last):
    held[row] = held.get(row, [])[: max(first, 0)]


def llama_decode(context, batch):
    for i in range(batch.n_tokens):
        row = held.setdefault(batch.seq_id[i][0], [])
        if batch.pos[i] != len(row):
            return 1
        row.append(batch.token[i])
    return 0
"""


def test_a_worker_answers_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp.py").write_text(LLAMA_CPP)
    load = {"do": "load", "peer": "llama.cpp", "threads": 1, "fused": False, "guesses": 0}
    texts = [list(range(1100)), list(range(1100))]
    asked = [
        load | {"file": "wrong.gguf"},
        load | {"file": "model.gguf"},
        {"do": "texts", "texts": texts, "room": 3},
        {"do": "steps", "rows": 2, "count": 1},  # nothing has been read
        {"do": "read", "row": 0},
        {"do": "read", "row": 1},
        {"do": "steps", "rows": 2, "count": 3},
        {"do": "steps", "rows": 1, "count": 2},
    ]
    done = subprocess.run(
        [sys.executable, str(WORKER), "serve"], input="".join(json.dumps(one) + "\n" for one in asked), text=True,
        capture_output=True, env={"PYTHONPATH": str(tmp_path)}, check=True,
    )  # fmt: skip
    wrong, version, nothing, early, *reads, three, two = map(json.loads, done.stdout.splitlines())
    assert wrong == {"error": "RuntimeError: llama.cpp cannot read wrong.gguf"}
    assert version == {"found": ["imitation", "SSE3, AVX2"]}
    assert nothing == {"found": None}
    assert early == {"error": "RuntimeError: llama_decode returned 1"}
    assert all(read["found"] > 0 for read in reads)
    assert [len(steps["found"]) for steps in (three, two)] == [3, 2]
    assert "loading" in done.stderr


LOOKUP = (
    LLAMA_CPP.replace("batch.pos[i] != len(row)", "batch.pos[i] != len(row) or (i == 0 and batch.token[i] != len(row))")
    + """
import sys
import types

import numpy

VOCABULARY = 2000
llama_model_get_vocab = lambda model: 1
llama_vocab_n_tokens = lambda vocab: VOCABULARY


def llama_get_logits_ith(context, i):
    made = (ctypes.c_float * VOCABULARY)()
    made[1 + batches[-1][i]] = 1
    return ctypes.cast(made, ctypes.POINTER(ctypes.c_float))


def LlamaPromptLookupDecoding(num_pred_tokens):
    return lambda ids: numpy.array([ids[-1] + 1, ids[-1] + 2, 0])


batches, decode = [], llama_decode


def llama_decode(context, batch):
    batches.append([batch.token[i] for i in range(batch.n_tokens)])
    print("tokens", batch.n_tokens)
    return decode(context, batch)


sys.modules["llama_cpp.llama_speculative"] = types.SimpleNamespace(LlamaPromptLookupDecoding=LlamaPromptLookupDecoding)
"""
)
"""Where every token is the one before it plus one, and two of three guesses are right."""


def test_prompt_lookup_goes_on_greedily(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp.py").write_text(LOOKUP)
    asked = [
        {"do": "load", "peer": "llama.cpp", "threads": 1, "fused": False, "guesses": 3, "file": "model.gguf"},
        {"do": "texts", "texts": [list(range(600))], "room": 7},
        {"do": "read", "row": 0},
        {"do": "steps", "rows": 1, "count": 7},
        {"do": "steps", "rows": 1, "count": 7},
    ]
    done = subprocess.run(
        [sys.executable, str(WORKER), "serve"], input="".join(json.dumps(one) + "\n" for one in asked), text=True,
        capture_output=True, env={"PYTHONPATH": str(tmp_path)}, check=True,
    )  # fmt: skip
    *_, first, second = map(json.loads, done.stdout.splitlines())
    assert [len(each["found"]) for each in (first, second)] == [1, 1]
    assert min(first["found"] + second["found"]) > 0
    # The prompt in batches of 512, then three tokens a step: the last one and two that were guessed right.
    assert [int(line.split()[1]) for line in done.stderr.splitlines() if "tokens" in line] == [512, 87, *[4] * 6]


@pytest.mark.parametrize(("code", "seconds"), [("print(1)", 0), ("import time; time.sleep(0.3); print(1)", 0.3)])
def test_a_first_token_is_timed(code: str, seconds: float) -> None:
    command = [sys.executable, str(WORKER.with_name("first_token.py")), sys.executable, "-c", code]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["seconds"] > seconds
    assert 0 < found["peak_gib"] < 1


def test_a_process_without_a_first_token_fails() -> None:
    command = [sys.executable, str(WORKER.with_name("first_token.py")), sys.executable, "-c", "pass"]
    assert subprocess.run(command, capture_output=True).returncode == 1


def test_a_peer_reads_the_file_or_one_of_the_type_it_is_named_with(monkeypatch: pytest.MonkeyPatch) -> None:
    from evidence.bench import peers

    monkeypatch.setattr(peers, "python_with", lambda library, pythons: f"{library}/python")
    monkeypatch.setattr(peers, "file_type", lambda file: "Q4_K_M")
    monkeypatch.setattr(peers, "quantised", lambda python, file, kind: Path(f"{file.stem}.{kind}.gguf"))
    asked = ["llama.cpp fused", "openvino:Q4_0", "llama.cpp:Q4_K_M", "openvino lookup:Q4_0", "transformers"]
    found = peers.find(Namespace(peers=asked, peer_python=[]), Path("a.gguf"), 2)
    assert {name: (one.library, one.python, str(one.file), one.precision) for name, one in found.items()} == {
        "llama.cpp fused": ("llama.cpp", "llama.cpp/python", "a.gguf", "Q4_K_M"),
        "openvino, Q4_0": ("openvino", "openvino/python", "a.Q4_0.gguf", "Q4_0"),
        "llama.cpp": ("llama.cpp", "llama.cpp/python", "a.gguf", "Q4_K_M"),
        "openvino lookup, Q4_0": ("openvino", "openvino/python", "a.Q4_0.gguf", "Q4_0"),
    }


def test_without_llama_cpp_there_are_no_files_of_other_types(monkeypatch: pytest.MonkeyPatch) -> None:
    from evidence.bench import peers

    monkeypatch.setattr(peers, "python_with", lambda library, pythons: None if library == "llama.cpp" else "python")
    monkeypatch.setattr(peers, "file_type", lambda file: "Q4_K_M")
    with pytest.raises(SystemExit, match=r"--peers openvino:Q4_0: only llama.cpp can make such a file"):
        peers.find(Namespace(peers=["openvino:Q4_0"], peer_python=[]), Path("a.gguf"), 2)
