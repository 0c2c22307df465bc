"""What lm-eval finds by itself."""

import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path


def test_the_model_is_an_entry_point_of_lm_eval():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    (value,) = project["entry-points"]["lm_eval.models"].values()
    from lm_eval.api.model import LM
    from lm_eval.api.registry import get_model

    found = EntryPoint("solm", value, "lm_eval.models").load()
    assert issubclass(found, LM)
    assert get_model("solm") is found
