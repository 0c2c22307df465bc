"""Calls of an engine recorded with all memory that they read, to be repeated by helpers/replay.cpp in another build of
it, for another architecture: there everything is put at the same addresses, so that pointers stay as they are.

A record holds numbers of 8 bytes. Ranges of memory to map: their count, then of each address and bytes. Places: their
count, then of each address, bytes and content. The address of the model. Events: their count, then of each its kind. A
cache (0) has a name and a capacity. A call (1) has its address, places, and the outputs to be told: their count, then
of each address and bytes.
"""

import ctypes
import struct
from pathlib import Path

import numpy as np

from solm.backends.budgets import ROW_STATE
from solm.backends.cpu import border

_PAGE = 4096


class Recorder:
    """A library in whose place it can be given to one `Engine`."""

    def __init__(self, library):
        self._library, self._ranges, self._events, self._count = library, [], b"", 0
        self.results: list[bytes] = []
        """What the calls' outputs were."""

    def __getattr__(self, name):
        return getattr(self._library, name)

    def solm_engine(self, model, made, message):
        self._model = model._obj
        return self._library.solm_engine(model, made, message)

    def solm_cache(self, engine, source, length, capacity, made, message):
        assert source is None
        code = self._library.solm_cache(engine, source, length, capacity, made, message)
        self._event(0, _numbers(made._obj.value, capacity))
        return code

    def solm_run(self, engine, at):
        call = border.Call.from_address(at)
        steps, hidden = call.rows * call.count, self._model.sizes.hidden
        outputs = [
            (call.realised, 24 * steps), (call.actions, 8 * steps), (call.stream, 4 * steps * hidden),
            (call.logits, 4 * call.rows * call.logit_steps * self._model.sizes.vocabulary),
        ]  # fmt: skip
        inputs = [
            (at, ctypes.sizeof(call)), (call.rules, ctypes.sizeof(border.SparsityRules)),
            (call.caches, 8 * call.rows), (call.tokens, 8 * steps), (call.lengths, 8 * call.rows),
            (call.keep, 24 * steps if call.keep else 0), (call.states, ROW_STATE.itemsize * call.rows),
            (call.exact_rows, call.rows if call.exact_rows else 0), (call.message, border.CONSTANTS["MESSAGE"]),
        ]  # fmt: skip
        inputs = [place for place in inputs if place[1]]
        places = _places(inputs)
        code = self._library.solm_run(engine, at)
        self.results += [ctypes.string_at(*output) for output in outputs]
        self._ranges += inputs + outputs
        self._event(1, _numbers(at) + places + _numbers(len(outputs)) + b"".join(_numbers(*each) for each in outputs))
        return code

    def write(self, engine, path: Path) -> None:
        """Write the record of `engine`, which was made with this library."""
        model = self._model
        memory = [
            (ctypes.addressof(model), ctypes.sizeof(model)),
            (engine._weights.ctypes.data, engine._weights.nbytes),
        ]
        for kept in engine._kept:
            if isinstance(kept, ctypes.Array):
                memory.append((ctypes.addressof(kept), ctypes.sizeof(kept)))
            else:
                array = kept if isinstance(kept, np.ndarray) else kept.data
                memory.append((array.ctypes.data, array.nbytes))
        memory = [place for place in memory if place[1]]
        maps = _pages(memory + self._ranges)
        content = _numbers(len(maps)) + b"".join(_numbers(*each) for each in maps) + _places(memory)
        path.write_bytes(content + _numbers(ctypes.addressof(model), self._count) + self._events)

    def split(self, content: bytes) -> list[bytes]:
        """The outputs that the other build wrote, as `results` has them."""
        found, at = [], 0
        for result in self.results:
            found.append(content[at : at + len(result)])
            at += len(result)
        assert at == len(content)
        return found

    def _event(self, kind: int, content: bytes) -> None:
        self._events += _numbers(kind) + content
        self._count += 1


def _numbers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def _places(memory) -> bytes:
    return _numbers(len(memory)) + b"".join(_numbers(*each) + ctypes.string_at(*each) for each in memory)


def _pages(memory) -> list[tuple[int, int]]:
    """Whole pages that cover `memory`, each once."""
    found: list[tuple[int, int]] = []
    for address, size in sorted(memory):
        first, end = address // _PAGE * _PAGE, -(-(address + size) // _PAGE) * _PAGE
        if found and first <= sum(found[-1]):
            found[-1] = (found[-1][0], max(end, sum(found[-1])) - found[-1][0])
        else:
            found.append((first, end - first))
    return found
