"""What `solm doctor` says of threads and of the cache folder; of models: tests/integration/test_command_line.py."""

import json

import pytest

from helpers.gguf_files import write_gguf
from solm.backends.machine import UsableCores
from solm.cli.doctor import _why_threads, doctor

HERE = "8 hardware threads of 4 cores, a quota of 2.5 cores"


@pytest.mark.parametrize(
    ("said", "threads", "why"),
    [
        (None, 2, HERE),
        (None, 1, f"torch was set to so many; there are {HERE}"),
        ("6,1", 6, f"OMP_NUM_THREADS says so; there are {HERE}"),
    ],
)
def test_why_so_many_threads(monkeypatch, said, threads, why):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert _why_threads(threads, UsableCores(8, 4, 4, 2.5)) == why


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("solm.evaluation.step_timing.memory_bandwidth", lambda: 1.0)


def test_a_file_that_only_the_engine_reads_runs_on_the_cpu_backend(tmp_path, quick, capsys):
    path = tmp_path / "model.gguf"
    write_gguf(path, "smollm3")  # which transformers does not read from GGUF files
    doctor(model=str(path), json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["model"]["error"] is None
    assert report["backend"]["auto"] == "cpu"


def test_an_accelerator_is_where_a_model_runs(tiny_folder, quick, monkeypatch, capsys):
    monkeypatch.setattr("solm.backends.machine.accelerator_available", lambda: True)
    doctor(model=str(tiny_folder), json=True)
    assert json.loads(capsys.readouterr().out)["backend"] == {"auto": "torch", "reason": "there is an accelerator"}


def test_a_compiler_behind_a_cache_says_its_version(quick, tiny_folder, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "env g++")
    doctor(model=str(tiny_folder), json=True)
    compiler = json.loads(capsys.readouterr().out)["compiler"]
    assert compiler["path"] == "env g++"
    assert "g++" in compiler["version"]


def test_a_cache_folder_of_no_use_is_not_blamed_on_the_compiler(tiny_folder, monkeypatch, capsys):
    monkeypatch.setenv("SOLM_CACHE", "/proc/solm")
    monkeypatch.setenv("SOLM_CXXFLAGS", "-DFRESH")  # an engine that is not built yet
    monkeypatch.setattr("solm.evaluation.step_timing.memory_bandwidth", lambda: 1.0)
    doctor(model=str(tiny_folder), json=True)
    (fix,) = (fix for fix in json.loads(capsys.readouterr().out)["fixes"] if "/proc/solm" in fix)
    assert fix.startswith("the cpu backend cannot be compiled to /proc/solm: ")
    assert fix.endswith("; set SOLM_CACHE to another folder")
