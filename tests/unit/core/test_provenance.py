"""Provenance: the command, the commit and the versions that made a policy."""

import json

from helpers.training import run
from solm.core.provenance import command_line, commit


def test_a_policy_records_its_provenance(tmp_path, byte_tokenizer):
    run(tmp_path, "a", byte_tokenizer, updates=1, seed=5)
    known = json.loads((tmp_path / "a" / "policy" / "policy_config.json").read_text())["provenance"]
    assert known["config"]["seed"] == 5
    assert len(known["data_fingerprint"]) >= 16
    assert set(known["versions"]) == {"solm", "torch", "transformers"}
    assert known["made"]["command"] == command_line()
    assert known["made"]["commit"] == commit()


def test_the_recorded_command_is_the_one_a_user_types(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["/x/solm/cli/__main__.py", "train", "--out", str(tmp_path / "a b")])
    assert command_line() == "solm train --out 'a b'"
