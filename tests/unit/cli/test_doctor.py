"""What `solm doctor` says of where a model runs; of models: tests/integration/test_command_line.py."""

import pytest

from helpers.gguf_files import write_gguf
from solm.cli.doctor import doctor


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("solm.core.provenance.memory_bandwidth", lambda: 1.0)


def test_a_file_that_only_the_engine_reads_runs_on_the_cpu_backend(tmp_path, quick, byte_tokenizer, monkeypatch):
    path = tmp_path / "model.gguf"
    monkeypatch.setattr("solm.runtime.load.model_tokenizer", lambda *_: byte_tokenizer)  # the file has none
    write_gguf(path, "smollm3")  # which transformers does not read from GGUF files
    report = doctor(model=str(path)).content
    assert report["model"]["error"] is None
    assert report["backend"]["auto"] == "cpu"


def test_weights_that_are_larger_than_memory_are_told(tiny_folder, quick, monkeypatch):
    monkeypatch.setattr("solm.backends.machine.free_memory", lambda: 1000)
    found = doctor(model=str(tiny_folder)).content
    assert found["free_bytes"] == 1000 < found["model"]["bytes"]
    assert any("GB of memory are free, so that steps read from the disk: choose" in fix for fix in found["fixes"])
    monkeypatch.setattr("solm.backends.machine.free_memory", lambda: found["model"]["bytes"])
    assert not any("fewer bits" in fix for fix in doctor(model=str(tiny_folder)).content["fixes"])


def test_an_accelerator_is_where_a_model_runs(tiny_folder, quick, monkeypatch):
    monkeypatch.setattr("solm.runtime.load.accelerator_available", lambda: True)
    assert doctor(model=str(tiny_folder)).content["backend"] == {"auto": "torch", "reason": "there is an accelerator"}


def test_a_cache_folder_of_no_use_is_not_blamed_on_the_compiler(tiny_folder, monkeypatch):
    monkeypatch.setenv("SOLM_CACHE", "/proc/solm")
    monkeypatch.setenv("SOLM_CXXFLAGS", "-DFRESH")  # an engine that is not built yet
    monkeypatch.setattr("solm.core.provenance.memory_bandwidth", lambda: 1.0)
    (fix,) = (fix for fix in doctor(model=str(tiny_folder)).content["fixes"] if "/proc/solm" in fix)
    assert fix.startswith("the cpu backend cannot be compiled to /proc/solm: ")
    assert fix.endswith("; set SOLM_CACHE to another folder")
