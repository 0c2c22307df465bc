"""llama.cpp and OpenVINO GenAI as peers: the same file, each in a process of its own that answers line by line.

`pip install llama-cpp-python` builds llama.cpp from source for this machine, which takes minutes;
`pip install openvino-genai` is ready at once. Either may be in another Python environment (`--peer-python`).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import LlamaFileType

from solm.backends.gguf_header import read_header
from solm.core.files import cache_folder

WORKER = Path(__file__).with_name("peer_worker.py")
MODULES = {"llama.cpp": "llama_cpp", "openvino": "openvino_genai"}
FUSED = "llama.cpp fused"
"""With its fused attention, also known as flash attention."""
NAMES = ("llama.cpp", FUSED, "openvino")
LOOKUPS = ("llama.cpp lookup", "openvino lookup")
"""The same with prompt lookup: speculation on tokens that followed the last ones before."""
LOOKED_UP = "prompt lookup"
"""The setting of their steps: milliseconds per token, of which a step may make several."""
GUESSES = 10
"""Tokens that prompt lookup guesses at a time."""


class PeerError(Exception):
    """What a peer says that it cannot do."""


@dataclass(frozen=True)
class Asked:
    """A peer, the Python that has it, and the GGUF file of type `precision` that it reads."""

    name: str
    python: str
    file: Path
    precision: str
    threads: int

    @property
    def library(self) -> str:
        return self.name.split()[0]

    def first_token(self, prompt: str) -> list[str]:
        """The command of a process that loads the peer and writes a byte with its first token."""
        return [self.python, str(WORKER), "first-token", self.library, str(self.file), str(self.threads), prompt]


class Peer:
    """A peer at work. Methods raise `PeerError` where it cannot.

    version: of the library; instructions: those that it says it uses, where it does.
    """

    def __init__(self, asked: Asked):
        self._told = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process)
        self._process = subprocess.Popen(
            [asked.python, str(WORKER), "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._told,
            text=True,
        )  # fmt: skip
        try:
            self.version, self.instructions = self._ask(
                "load", peer=asked.library, file=str(asked.file), threads=asked.threads, fused=asked.name == FUSED,
                guesses=GUESSES if asked.name in LOOKUPS else 0,
            )  # fmt: skip
        except PeerError:
            self.close()
            raise

    def texts(self, texts: list[list[int]], room: int) -> None:
        """From here on, rows are of `texts` [rows][context + 1], with room for `room` more tokens each."""
        self._ask("texts", texts=texts, room=room)

    def read(self, row: int) -> float:
        """Milliseconds that reading a row's text takes, but for its last token."""
        return float(self._ask("read", row=row))

    def steps(self, rows: int, count: int) -> list[float]:
        """Milliseconds of each of `count` steps of the first `rows` rows, which have been read."""
        return [float(taken) for taken in self._ask("steps", rows=rows, count=count)]

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()
        self._told.close()

    def _ask(self, verb: str, **given: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": verb, **given}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._told.seek(0)
            raise PeerError(f"it ended: {self._told.read().decode(errors='replace').strip()[-300:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer["found"]


def python_with(library: str, pythons: list[str]) -> str | None:
    """The first of some Pythons in which a library is installed; None: none of them."""
    look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({MODULES[library]!r}) is None)"
    for python in pythons:
        try:
            if subprocess.run([python, "-c", look]).returncode == 0:
                return python
        except OSError as error:
            raise SystemExit(f"--peer-python: cannot run {python}: {error.strerror}") from error
    return None


def find(asked: argparse.Namespace, file: Path, threads: int) -> dict[str, Asked]:
    """The installed ones among the peers that are asked for, by name. They read `file`, or as `openvino:Q4_0` a file of
    that type that llama.cpp makes from it."""
    libraries = {library: python_with(library, [*asked.peer_python, sys.executable]) for library in MODULES}
    own, found = file_type(file), {}
    for name, _, kind in (each.partition(":") for each in asked.peers):
        if name not in (*NAMES, *LOOKUPS):
            continue
        python, path = libraries[name.split()[0]], file
        if python is None:
            print(f"peer {name}: not installed", file=sys.stderr)
            continue
        if kind not in ("", own):
            if libraries["llama.cpp"] is None:
                raise SystemExit(f"--peers {name}:{kind}: only llama.cpp can make such a file, and it is not installed")
            path = quantised(libraries["llama.cpp"], file, kind)
        found[name if path == file else f"{name}, {kind}"] = Asked(name, python, path, kind or own, threads)
    return found


def file_type(file: Path) -> str:
    """What a GGUF file says that it mostly holds, such as Q4_K_M."""
    kind = read_header(file).metadata.get("general.file_type")
    if kind is None:
        return file.stem.rpartition(".")[2]
    return LlamaFileType(kind).name.removeprefix("MOSTLY_").removeprefix("ALL_")


def quantised(python: str, file: Path, kind: str) -> Path:
    """The weights of `file` in another of llama.cpp's types, made once and kept in the cache folder."""
    source = file.stat()  # another model may have the same name
    target = cache_folder() / f"{file.stem}.{source.st_size:x}-{source.st_mtime_ns:x}.{kind}.gguf"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        print(f"making {target.name}", file=sys.stderr)
        done = subprocess.run(
            [python, str(WORKER), "quantise", str(file), str(target), kind], capture_output=True, text=True
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["it said nothing"]
            raise SystemExit(f"llama.cpp cannot make {target.name}: {said[-1]}")
    return target
