"""The errors a user can cause. Each carries one clear line and the exit code the command line uses for it."""

from collections.abc import Iterator
from contextlib import contextmanager


class SolmError(Exception):
    """A user's mistake: the message names the bad value and the allowed range."""

    exit_code = 2
    argument: str | None = None
    """The argument that is wrong, where it is one; the command line names its option."""


@contextmanager
def argument(name: str) -> Iterator[None]:
    """Say of a `SolmError` of the block that the argument called `name` is wrong, unless an inner block said which."""
    try:
        yield
    except SolmError as error:
        error.argument = error.argument or name
        raise


class DamagedFileError(SolmError):
    """A file that exists but cannot be what it claims to be: truncated, altered or of another version."""

    exit_code = 3


def damaged(file: object, field: str, reason: str) -> DamagedFileError:
    """The error for `field` of a file."""
    return DamagedFileError(f"{file} is damaged: {field}: {reason}")


class CacheFolderError(SolmError):
    """A cache folder that cannot be used; the message says how to choose another."""


class BudgetError(SolmError):
    """A budget outside the allowed range, or one that the action space cannot reach."""


class UnsupportedModelError(SolmError):
    """A model, or an axis of it, that cannot be controlled; the message says why."""


class ContextLengthError(SolmError):
    """More tokens than the base model's positions allow."""


class DataError(SolmError):
    """Text that is missing, empty, too short or malformed; the message names the file and line."""


class PolicyMismatchError(SolmError):
    """A policy that belongs to another base model, action space or shape."""


class RunMismatchError(SolmError):
    """A run folder that holds another configuration, or that another process is using."""


def check_unicode(text: str, what: str) -> None:
    """Raises `DataError` for `text`, called `what`, with lone surrogates, which bytes that are not UTF-8 become and
    tokenizers refuse with errors of their own."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{what} is not valid Unicode text (UTF-8) at character {error.start}") from error


def counted(count: float, noun: str) -> str:
    """Such as ``1 text`` and ``2 texts``."""
    number = f"{count:g}" if isinstance(count, float) else f"{count}"
    return f"{number} {noun}{'' if count == 1 else 's'}"


def printable(text: str) -> str:
    """`text` in one line, with a question mark for every letter that a terminal does not show."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
