"""Counters of energy: what is told of them, how steps share it, and that nothing is told without them."""

import pytest

from solm.core.energy import EnergyMeter
from solm.runtime.reply import Trace


@pytest.fixture
def counters(tmp_path):
    """A package of two cores, its memory, and what sets their microjoules; they begin anew at 1,000,000."""

    def put(name: str, microjoules: int) -> None:
        (tmp_path / name / "energy_uj").write_text(f"{microjoules}\n")

    zones = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram", "intel-rapl:1": "psys"}
    for name, kind in zones.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(kind + "\n")
        (tmp_path / name / "max_energy_range_uj").write_text("1000000\n")
        put(name, 900_000)
    return tmp_path, put


def test_packages_and_their_memory_count_and_begin_anew(counters):
    folder, put = counters
    meter = EnergyMeter.found(folder)
    put("intel-rapl:0", 950_000)
    put("intel-rapl:0:0", 999_999)
    put("intel-rapl:0:1", 910_000)
    assert meter.joules() == pytest.approx(0.06)
    put("intel-rapl:0", 50_000)
    assert meter.joules() == pytest.approx(0.16)


def test_rows_of_a_step_share_what_it_took(counters, value_lm):
    folder, put = counters
    meter, rows = EnergyMeter.found(folder), [Trace(1, value_lm.space) for _ in range(2)]
    for taken in (rows, rows[:1]):
        put("intel-rapl:0", 0)
        meter.joules()
        with meter.shared(taken):
            put("intel-rapl:0", 400_000)
    assert [row.joules for row in rows] == pytest.approx([0.6, 0.2])


@pytest.mark.parametrize("name", ["energy_uj", "max_energy_range_uj"])
def test_nothing_is_told_by_counters_that_cannot_be_read(counters, name):
    folder, _ = counters
    (folder / "intel-rapl:0" / name).write_text("?")
    assert EnergyMeter.found(folder) is None
    assert EnergyMeter.found(folder / "missing") is None


def test_nothing_is_told_by_counters_that_cannot_be_read_any_more(counters, value_lm):
    folder, put = counters
    meter, row = EnergyMeter.found(folder), Trace(1, value_lm.space)
    put("intel-rapl:0", "?")
    with meter.shared([row]):
        put("intel-rapl:0", 950_000)
    assert (row.joules, meter.joules()) == (None, pytest.approx(0.05))


def test_a_reply_says_what_it_took_where_that_is_known(counters, value_lm):
    folder, put = counters
    value_lm.meter = None
    assert value_lm.generate("abc", max_new_tokens=3).as_dict()["energy_joules"] is None
    value_lm.meter = EnergyMeter.found(folder)
    moments = iter(range(900_000, 1_000_000, 1_000))
    read, value_lm.meter._read = value_lm.meter._read, lambda: (put("intel-rapl:0", next(moments)), read())[1]
    reply = value_lm.generate("abc", max_new_tokens=3)
    # Between two readings a millijoule is taken: by the prompt, and by every step.
    assert reply.as_dict()["energy_joules"] == pytest.approx(0.001 * len(reply.tokens))
