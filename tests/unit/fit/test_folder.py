"""The folder of a fit: what is skipped, what is done again, and whose it is."""

import pytest

from solm.core.errors import DamagedFileError, RunMismatchError
from solm.fit.folder import MANIFEST, About, FitFolder
from solm.fit.plan import Sizes

ABOUT = About(
    model="{}", backend="cpu int8", processor="p", threads=2, mlp_site="input", data={"a": "1"}, minutes=5, seed=0
)  # fmt: skip
SIZES = Sizes(
    context=64, timing_seconds=1.0, threshold_texts=1, allocation_axes=("mlp",), allocation_texts=2,
    allocation_length=8, sample_batches=4, sample_length=8, cost_texts=1, cost_length=8, comparisons=(),
)  # fmt: skip


def made(path, calls, about=ABOUT):
    """Two phases, the second of which reads what the first wrote."""
    with FitFolder.opened(path, about) as folder:

        def one():
            calls.append("one")
            (path / "one.json").write_text("1")
            (path / "beside.json").write_text("more")
            return ["beside.json"]

        def two():
            calls.append("two")
            (path / "two.json").write_text("2")

        folder.phase("one", "one.json", [], one)
        folder.phase("two", "two.json", ["one.json"], two)


def test_a_phase_is_skipped_while_its_output_is_whole_and_its_inputs_the_same(tmp_path):
    for change, wanted in (
        (lambda: None, ["one", "two"]),
        (lambda: None, []),
        (lambda: (tmp_path / "two.json").write_text("half"), ["two"]),
        (lambda: (tmp_path / "two.json").unlink(), ["two"]),
        (lambda: (tmp_path / "one.json").write_text("other"), ["one"]),
        (lambda: (tmp_path / "beside.json").write_text("half"), ["one"]),
        (lambda: (tmp_path / "beside.json").unlink(), ["one"]),
    ):
        change()
        calls = []
        made(tmp_path, calls)
        assert calls == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "{1}"}, "another model; choose"),
        ({"data": {"a": "2"}}, "another data; choose"),
        ({"processor": "q"}, r"another processor \(p there, q here\)"),
        ({"minutes": 6.5}, r"another minutes \(5.0 there, 6.5 here\)"),
    ],
)
def test_a_folder_holds_one_fit(tmp_path, change, message):
    made(tmp_path, [])
    with pytest.raises(RunMismatchError, match=message):
        made(tmp_path, [], ABOUT.model_copy(update=change))


def test_other_minutes_are_taken_while_no_phase_is_done(tmp_path):
    short, long = SIZES, SIZES.model_copy(update={"timing_seconds": 9.0})
    with FitFolder.opened(tmp_path, ABOUT) as folder:
        assert not folder.is_planned
        assert folder.sizes("one", lambda: short) == short
    with FitFolder.opened(tmp_path, ABOUT) as folder:
        assert folder.is_planned
    other = ABOUT.model_copy(update={"minutes": 6.5})
    with FitFolder.opened(tmp_path, other) as folder:
        assert not folder.is_planned
        assert folder.sizes("one", lambda: long) == long, "sizes are those of the new minutes"
    with pytest.raises(RunMismatchError, match="another seed"):
        made(tmp_path, [], other.model_copy(update={"seed": 1}))
    made(tmp_path, [], other)
    with pytest.raises(RunMismatchError, match="another minutes"):
        made(tmp_path, [])


def test_a_damaged_manifest_and_a_second_process_are_refused(tmp_path):
    with FitFolder.opened(tmp_path, ABOUT), pytest.raises(RunMismatchError, match="another process is fitting"):
        made(tmp_path, [])
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(DamagedFileError, match=MANIFEST):
        made(tmp_path, [])
