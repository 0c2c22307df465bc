"""The result file of a study or a benchmark."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from solm.core.provenance import command_line, environment
from solm.evaluation.result import SCHEMA_VERSION


class Record(BaseModel):
    """What a study or a benchmark found, and what is needed to repeat it. `results` has a form of its own by kind."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    kind: str
    schema_version: Literal[3] = SCHEMA_VERSION
    command: str
    environment: dict[str, Any]
    settings: dict[str, Any]
    results: dict[str, Any]


def record(kind: str, settings: dict[str, Any], results: dict[str, Any]) -> Record:
    """A record of the command being run, on this machine."""
    return Record(kind=kind, command=command_line(), environment=environment(), settings=settings, results=results)
