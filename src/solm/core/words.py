"""Numbers in sentences."""


def counted(count: float, noun: str) -> str:
    """Such as ``1 text`` and ``2 texts``."""
    number = f"{count:g}" if isinstance(count, float) else f"{count}"
    return f"{number} {noun}{'' if count == 1 else 's'}"
