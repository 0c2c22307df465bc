"""Standard input, output and error that are closed, full or not UTF-8."""

import errno
import io
import os
import sys
from contextlib import suppress

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def prepare() -> None:
    """Have streams that were closed at the start raise `OSError` when they are used, but for errors, which are lost.
    Bytes that are not UTF-8 are read as lone surrogates, as Python reads arguments; commands check what they read."""
    # Python has None for a closed stream. Opening each, in this order, also keeps its number from other files.
    if sys.stdin is None:
        sys.stdin = open(os.open(os.devnull, os.O_WRONLY))  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def reason(error: OSError) -> str:
    """Why a standard stream cannot be used."""
    return "it is closed" if error.errno == errno.EBADF else error.strerror or str(error)


def is_of_output(error: OSError) -> bool:
    """Whether standard output caused an error. What it holds is dropped then, of which Python would complain at its
    end."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):  # of a stream without a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return error.filename is None and error.errno in _FULL  # with PYTHONUNBUFFERED it holds nothing
