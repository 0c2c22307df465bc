"""Provenance: the command, the commit and the versions that made a policy."""

import shutil
import subprocess
import sys

from solm.core import provenance
from solm.core.provenance import command_line, plain_name, plain_names


def test_the_commit_of_a_checkout_that_solm_is_installed_in_is_not_its_own(tmp_path):
    installed = tmp_path / ".venv" / "core"
    installed.mkdir(parents=True)
    shutil.copy(provenance.__file__, installed)
    (tmp_path / ".gitignore").write_text(".venv\n")
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "m"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    told = [sys.executable, "-c", "import provenance; print(provenance.commit())"]
    assert subprocess.run(told, cwd=installed, capture_output=True, text=True).stdout == "unknown\n"


def test_the_recorded_command_is_the_one_a_user_types(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["/x/solm/cli/__main__.py", "train", "--out", str(tmp_path / "a b")])
    assert command_line() == "solm train --out 'a b'"


def test_absolute_paths_in_lists_and_after_options_lose_their_folders(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/x/solm", "fit", "/m/a.gguf", "--data=/d/wiki,pydoc:train", "--out", "runs/x"])
    assert command_line() == "solm fit a.gguf --data=wiki,pydoc:train --out runs/x"
    monkeypatch.setattr("sys.argv", ["/x/serve.py", "--other", "their, one=/v/python /b/server.py /m/a.gguf {port}"])
    assert command_line() == "serve.py --other 'their, one=python server.py a.gguf {port}'"


def test_names_are_those_of_files_and_no_more_unless_two_are_alike(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("one/texts", "two/texts"):
        (tmp_path / folder).mkdir(parents=True)
    assert plain_name(str(tmp_path / "one" / "texts")) == plain_name("one/texts") == plain_name("one/texts/") == "texts"
    assert plain_name(".") == tmp_path.name
    for other in ("Qwen/Qwen2.5-0.5B", "builtin:smollm2-135m", "pydoc:train", "wikitext@raw:test"):
        assert plain_name(other) == other
    assert plain_name("/gone/model.gguf") == "model.gguf"
    assert plain_names(["one/texts", "pydoc"]) == ["texts", "pydoc"]
    assert plain_names(["one/texts", str(tmp_path / "two/texts"), "pydoc"]) == ["one/texts", "two/texts", "pydoc"]
    assert plain_names(["one/texts", "one/texts"]) == ["texts", "texts"]
