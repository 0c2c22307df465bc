"""Energy that steps take, where this machine's counters can be read."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, Self


class Metered(Protocol):
    """What is told how much energy it took, in joules; None: not told."""

    joules: float | None


class EnergyMeter:
    """The counters of processors and of memory beside them (RAPL), which count what all programs of the machine take.

    They are read directly, since zeus-ml starts a process for each of them and needs ten packages. counters: of each
    its file of microjoules, and where it begins anew. Raises `OSError` or `ValueError` for one that cannot be read.
    """

    def __init__(self, counters: Sequence[tuple[Path, int]]):
        # They stay open, because every step reads them twice.
        self._counters, self._total = [(path.open("rb", buffering=0), most) for path, most in counters], 0
        self._last = self._read()

    @classmethod
    def found(cls, folder: Path = Path("/sys/class/powercap")) -> Self | None:
        """That of the counters in a folder of Linux; None where there is none, such as in most virtual machines, or
        where they may not be read: then nothing is told, and never an estimate."""
        counters = list[tuple[Path, int]]()
        with suppress(OSError, ValueError):
            for name in sorted(folder.glob("intel-rapl:*/name")):
                if name.read_text().strip().startswith(("package", "dram")):  # of a package, cores are a part
                    most = int((name.parent / "max_energy_range_uj").read_text())
                    counters.append((name.parent / "energy_uj", most))
            return cls(counters) if counters else None
        return None

    def _read(self) -> list[int]:
        return [int(os.pread(file.fileno(), 32, 0)) for file, _ in self._counters]

    def joules(self) -> float | None:
        """Since the meter was made, if it is read more often than counters begin anew, which takes minutes; None where
        one cannot be read any more."""
        try:
            now = self._read()
        except (OSError, ValueError):
            return None
        for (_, most), before, after in zip(self._counters, self._last, now, strict=True):
            self._total += after - before if after >= before else after + most - before
        self._last = now
        return self._total / 1e6

    @contextmanager
    def shared(self, rows: Sequence[Metered]) -> Iterator[None]:
        """Add what the block takes to `rows`, the same to each, as each has the same share of a step's time."""
        before = self.joules()
        yield
        after = None if before is None else self.joules()
        if before is not None and after is not None:
            for row in rows:
                row.joules = (row.joules or 0.0) + (after - before) / len(rows)
