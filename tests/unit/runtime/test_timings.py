"""Times of steps: what is measured, what is made of it, and what is refused."""

import json
import sys

import pytest

import solm
from helpers.timings import made_clock
from solm.cli.main import main
from solm.core.clock import StepClock
from solm.core.errors import DamagedFileError
from solm.core.files import read_model
from solm.runtime.clock import measure_clock


def test_high_halves_of_weights_take_their_own_time(tiny_folder):
    with solm.load(str(tiny_folder), sparsity=solm.SparsityConfig.preset("nested")) as lm:
        found = measure_clock(lm, lambda *_: None, 0.2)
        assert found.bits_ms >= 0
        assert found.rates(100)[2] == found.bits_ms


@pytest.mark.parametrize(
    "change", [{"base_ms": 0.0}, {"contexts": []}, {"format": 2}, {"extra": 1}], ids=lambda change: next(iter(change))
)
def test_a_damaged_file_is_refused(tmp_path, change):
    path = tmp_path / "timings.json"
    path.write_text(json.dumps(made_clock().model_dump(mode="json") | change))
    with pytest.raises(DamagedFileError, match=r"timings.json is damaged"):
        read_model(path, StepClock)
    path.write_text(made_clock().model_dump_json()[:-20])
    with pytest.raises(DamagedFileError):
        read_model(path, StepClock)
    path.write_text('{"attention_ms": []}')
    with pytest.raises(DamagedFileError, match="damaged or of another version"):
        read_model(path, StepClock)


def test_the_command_measures_and_its_file_is_used(tiny_folder, tmp_path, monkeypatch, capsys):
    def solm(*arguments):
        monkeypatch.setattr(sys, "argv", ["solm", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr()

    out = tmp_path / "timings.json"
    common = ["--model", tiny_folder, "--backend", "torch"]
    code, said = solm("bench", *common, "--context", "90,200", "--seconds", "1", "--out", out)
    assert not code, said.err
    assert "pages 0.1, MLP 0.4" in said.out
    assert "context 200" in said.out
    assert read_model(out, StepClock).contexts[0] == 64
    code, said = solm("generate", *common, "--timings", out, "--budget", "ms=1000", "--max-new-tokens", "4", "hi")
    assert not code, said.err
    assert "net keep 1.000" in said.err
    code, said = solm("bench", *common, "--context", "5000")
    assert (code, "context of 512" in said.err) == (2, True)
    code, said = solm("bench", *common, "--context", "a")
    assert (code, "'a' is not a list" in said.err) == (2, True)
