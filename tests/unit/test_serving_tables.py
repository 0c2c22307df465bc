"""The tables of servers: empty until they are measured, then filled in."""

import json
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import published
    import tables_serving

    monkeypatch.setattr(published, "RESULTS", tmp_path)
    monkeypatch.setattr(published, "read", published.read.__wrapped__)
    return tables_serving


def run(**more: float) -> dict[str, float]:
    rates = {"first_p50_ms": 1234, "first_p95_ms": 2000, "tpot_p50_ms": 15.04, "tpot_p95_ms": 16}
    return {"tokens_per_second": 94.4, "net_keep": 0.9} | rates | more


def test_nothing_is_shown_before_it_is_measured(tables: Any) -> None:
    assert tables.serving_beside() == tables.replicas() == tables.governor_bits() == ""


def test_servers_are_compared_by_prompt_and_clients(tables: Any, tmp_path: Path) -> None:
    servers = {"solm": {"1": run(), "16": run()}, "other": {"1": run(tpot_p50_ms=20), "16": run()}}
    result = {"servers": servers, "peak_gib": {"solm": 0.5, "other": 1.25}}
    for name in ("serve-0.5b-1024", "replicas-135m"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"results": result}))
    lines = tables.serving_beside().splitlines()
    assert lines[2] == "| solm | 1,024 | 1 | 94 | 1,234 | 2,000 | 15.0 | 16.0 | 0.50 |"
    assert lines[3] == "| other | 1,024 | 1 | 94 | 1,234 | 2,000 | 20.0 | 16.0 | 1.25 |"
    assert lines[4].startswith("| solm | 1,024 | 16 |")
    assert lines[-1] == "`results/serve-0.5b-1024.json`."
    assert tables.replicas().splitlines()[3] == "| other | 1 | 94 | 1,234 | 2,000 | 20.0 | 16.0 | 1.25 |"


def test_a_governor_is_shown_with_what_it_spent(tables: Any, tmp_path: Path) -> None:
    result = {"objective_ms": 17.04, "servers": {"dense, overload": run(net_keep=1), "governor, budgets": run()}}
    (tmp_path / "governor-0.5b.json").write_text(json.dumps({"results": result}))
    lines = tables.governor_bits().splitlines()
    assert lines[0].startswith("| Objective: 17.0 ms | tokens/s |")
    assert lines[3] == "| governor, budgets | 94 | 1,234 | 2,000 | 15.0 | 16.0 | 0.90 |"
