"""Progress in a log, and what --quiet leaves."""

import errno
import io
import sys
from types import SimpleNamespace

from solm.cli.output import Progress, Result, print_result, read_weights, say


def test_without_a_terminal_progress_is_lines_with_the_time_left(capsys, monkeypatch):
    """One for every stage, and one every half a minute."""
    now = 100.0
    monkeypatch.setattr("solm.cli.output.time.monotonic", lambda: now)
    with Progress() as progress:
        for done in range(5):
            progress.show("reading", done, 4, "all of it" if done == 3 else "")
            now += 20
        progress.show("writing", 0, None)
    lines = ["reading 0/4", "reading 2/4, about 0:00:40 left", "reading 4/4", "writing"]
    assert capsys.readouterr().err.splitlines() == lines


def test_a_result_without_words_of_its_own_is_shown_value_by_value(capsys):
    content = {
        "name": "x", "reason": None, "bytes": 96_400_000, "runs": True, "parts": {"a": {"b": 1, "c": None}, "d": 2},
        "listed": ["a word " * 9] * 2, "nothing": [],
    }  # fmt: skip
    print_result(Result(content), as_json=False)
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "name x", "bytes 96.4 MB", "runs yes", "parts a (b 1), d 2", "listed", *["a word " * 8 + "a word"] * 2,
    ]  # fmt: skip


def test_progress_that_cannot_be_written_is_lost(monkeypatch):
    class Full(io.StringIO):
        refused = 0

        def write(self, text):
            self.refused += 1
            raise OSError(errno.ENOSPC, "No space left on device")

    full, free = Full(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", full)
    with Progress() as progress:
        progress.show("reading", 0, 2)
        monkeypatch.setattr(sys, "stderr", free)
        progress.show("writing", 0, 2)
    assert full.refused
    assert "writing 0/2" in free.getvalue()


def test_a_terminal_has_one_line_that_goes(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress() as progress:
        progress.show("reading all of it", 0, 2)
        say("a remark")
        progress.show("writing", 1, 2, "soon done")
    shown = ["reading all of it 0/2", "a remark\n", "writing 1/2, soon done", ""]
    assert terminal.getvalue() == "".join(f"\r\x1b[K{line}" for line in shown)


def test_repacking_is_told(capsys):
    def load(progress):
        progress(1, 5)
        progress(5, 5)
        return SimpleNamespace(timed_for=lambda budget, progress: progress("measuring", 2, 3))

    read_weights(SimpleNamespace(load=load))
    assert capsys.readouterr().err == "repacking the weights, once 1/5\nmeasuring 2/3\n"
