"""The dtypes that a model can be loaded in."""

from solm.core.errors import SolmError

DTYPES = ("auto", "float32", "bfloat16", "float16")


def dtype_name(asked: object) -> str:
    """The name of a dtype that is given by name or as torch's own; raises `SolmError` for another one."""
    name = str(asked).removeprefix("torch.")
    if name not in DTYPES:
        raise SolmError(f"unknown dtype {name!r}; choose one of {', '.join(DTYPES)}")
    return name
