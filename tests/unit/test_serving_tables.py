"""The tables of servers: empty until they are measured, then filled in."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import published
    import tables_serving

    monkeypatch.setattr(published, "RESULTS", tmp_path)
    for kept in ("read", "settings"):
        monkeypatch.setattr(published, kept, getattr(published, kept).__wrapped__)
    return tables_serving


def run(**more: float) -> dict[str, float]:
    rates = {"first_p50_ms": 1234, "first_p95_ms": 2000, "tpot_p50_ms": 15.04, "tpot_p95_ms": 16}
    return {"tokens_per_second": 94.4, "net_keep": 0.9} | rates | more


def write(folder: Path, name: str, result: Any, processor: str = "X (family 26, model 2)", **settings: Any) -> None:
    content = {"results": result, "settings": settings, "environment": {"machine": {"processor": processor}}}
    (folder / f"{name}.json").write_text(json.dumps(content))


def test_nothing_is_shown_before_it_is_measured(tables: Any) -> None:
    assert tables.serving_beside() == tables.serving_files() == tables.replicas() == ""
    assert tables.governor_bits() == tables.governor_pages() == ""


def test_servers_are_compared_by_prompt_and_clients(tables: Any, tmp_path: Path) -> None:
    servers = {"solm": {"1": run(), "16": run()}, "other": {"1": run(tpot_p50_ms=20), "16": run()}}
    servers["solm at loss=0.05"] = {"1": run(tpot_p50_ms=10), "16": run()}
    result = {"servers": servers, "peak_gib": {"solm": 0.5, "other": 1.25}}
    write(tmp_path, "serve-0.5b", result, prompt=1024, tokens=64, shared=0)
    write(tmp_path, "serve-0.5b-shared-4096", result, "Y", prompt=1024, tokens=64, shared=4096)
    lines = tables.serving_beside().splitlines()
    assert lines[2] == "| solm, dense | 1,024 + 64 | 1 | 94 | 1,234 | 2,000 | 15.0 | 16.0 | 0.50 |"
    assert lines[3] == "| solm, budget `loss=0.05` | 1,024 + 64 | 1 | 94 | 1,234 | 2,000 | 10.0 | 16.0 | as above |"
    assert lines[4] == "| other | 1,024 + 64 | 1 | 94 | 1,234 | 2,000 | 20.0 | 16.0 | 1.25 |"
    assert lines[5].startswith("| solm, dense | 1,024 + 64 | 16 |")
    assert lines[8].startswith("| solm, dense | 4,096 known + 1,024 + 64 | 1 |")
    assert lines[-1] == "`results/serve-0.5b.json`: X (Zen 5). `results/serve-0.5b-shared-4096.json`: Y."


def test_other_files_and_replicas(tables: Any, tmp_path: Path) -> None:
    servers = {"solm": {"1": run()}, tables.LLAMA: {"1": run(tpot_p50_ms=20, tokens_per_second=50)}}
    result = {"servers": servers, "peak_gib": dict.fromkeys(servers, 1.25)}
    for name in ("serve-0.5b-q4_0", "replicas-135m"):
        write(tmp_path, name, result)
    assert tables.serving_files().splitlines()[2] == "| Q4_0 | 1 | 50 → 94 | 1,234 → 1,234 | 20.0 → 15.0 |"
    assert tables.replicas().splitlines()[2] == "| solm | 1 | 94 | 1,234 | 2,000 | 15.0 | 16.0 | 1.25 |"


def test_a_governor_is_shown_with_what_it_spent(tables: Any, tmp_path: Path) -> None:
    lost = {"value": 0.0312, "low": 0.01, "high": 0.05, "texts": 16}
    servers = {"dense, overload": run(net_keep=1), "governor, budgets": run() | {"less_likely": lost}}
    result = {"objective_ms": 17.04, "servers": servers}
    write(tmp_path, "governor-0.5b", result)
    lines = tables.governor_bits().splitlines()
    assert lines[0].startswith("| Objective: 17.0 ms | tokens/s |")
    assert lines[3] == "| governor: lower budgets | 94 | 1,234 | 2,000 | 15.0 | 16.0 | 0.90 | +0.031 [+0.010, +0.050] |"


def test_net_keeps_and_shares_of_time_are_told_apart(tables: Any, tmp_path: Path) -> None:
    import published

    for name, settings in (("cpu int8 at 0.6", {}), ("cpu int8 at keep=0.6", {"budget": None})):
        content = {"results": {"servers": {name: {"1": run()}}}, "settings": settings}
        (tmp_path / "serve.json").write_text(json.dumps(content))
        assert list(published.servers()) == ["cpu int8 at keep=0.6"]
    content = {"results": {"servers": {"cpu int8 at 0.6": {"1": run()}}}, "settings": {"budget": "0.6"}}
    (tmp_path / "serve.json").write_text(json.dumps(content))
    assert list(published.servers()) == ["cpu int8 at 0.6"]
    assert [tables._shown(f"solm at {budget}") for budget in ("0.6", "keep=0.6")] == [
        "solm, budget `0.6`", "solm, budget `keep=0.6`"
    ]  # fmt: skip


@pytest.mark.parametrize("budget", ["0.6", "keep=0.6"])
def test_a_budgets_requests_are_named_by_it(tables: Any, monkeypatch: pytest.MonkeyPatch, budget: str) -> None:
    import serve

    async def answered(load: Any, clients: int, each: int, texts: list[str]) -> Any:
        return SimpleNamespace(numbers=run)

    monkeypatch.setattr(serve.Load, "run", answered)
    monkeypatch.setattr(serve, "commands", lambda options, folder: {"solm": ([], {})})
    monkeypatch.setattr(serve, "server", lambda *given: nullcontext(SimpleNamespace(address="", peak_gib=1.0)))
    monkeypatch.setattr(serve, "some_texts", lambda *given: [])
    told = SimpleNamespace(json=lambda: {"data": [{"id": "served"}]})
    monkeypatch.setattr(serve.httpx, "get", lambda address: told)
    asked = SimpleNamespace(budget=budget, tokens=4, clients=[1], replies=1, rounds=1, model="m", prompt=4, shared=0)
    assert list(serve.throughput(asked)["servers"]) == ["solm", f"solm at {budget}"]
