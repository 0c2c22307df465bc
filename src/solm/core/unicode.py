"""Text that cannot be written as UTF-8, which tokenizers refuse with errors of their own."""

from solm.core.errors import DataError


def check_unicode(text: str, what: str) -> None:
    """Raises `DataError` for `text`, called `what`, with lone surrogates, which bytes that are not UTF-8 become."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{what} is not valid Unicode text (UTF-8) at character {error.start}") from error
