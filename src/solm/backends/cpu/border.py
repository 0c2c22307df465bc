"""The border to the compiled engine, read from where it is declared: constants and structs from csrc/structs.h,
functions from csrc/api.cpp.

A library is built from these very sources (`build.sources_digest`), so that both sides have one declaration.
"""

import ctypes
import re
from typing import Any

from solm.backends.cpu.build import CSRC
from solm.core.errors import DataError, SolmError

_TYPES: dict[str, Any] = {
    "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "uint64_t": ctypes.c_uint64, "size_t": ctypes.c_size_t,
    "float": ctypes.c_float, "double": ctypes.c_double, "void": None,
}  # fmt: skip
INVALID = 1
"""What functions return for arguments that cannot be; 0 where they are done, another number without memory."""


def _source(name: str) -> str:
    return re.sub(r"//.*", "", (CSRC / name).read_text())


def _constants(source: str) -> dict[str, int]:
    matches = re.findall(r"constexpr (?:int|double) (\w+) = (\d+)(?: << (\d+))?;", source)
    return {name: int(number) << int(shift or 0) for name, number, shift in matches}


def _type(base: str, declarator: str) -> Any:
    """The type of a member or argument; every pointer is an address."""
    return ctypes.c_void_p if "*" in declarator else _TYPES[base]


def _structs(source: str) -> dict[str, Any]:
    """The structs, each of which may have those before it as members."""
    structs: dict[str, Any] = {}
    for name, body in re.findall(r"struct (\w+) \{(.*?)\};", source, re.DOTALL):
        fields = []
        for base, declarators in re.findall(r"(?:const )?(\w+)\b([^;]+);", body):
            for declarator in declarators.split(","):
                member, count = re.search(r"(\w+)(?:\[(\d+)\])?\s*$", declarator).groups()  # type: ignore[union-attr]
                kind = structs[base] if base in structs and "*" not in declarator else _type(base, declarator)
                fields.append((member, kind * int(count) if count else kind))
        structs[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    return structs


def _functions(source: str) -> dict[str, tuple[Any, list[Any]]]:
    """By name, what a function returns and takes."""
    functions = {}
    for returns, name, arguments in re.findall(r"^([\w ]+\*?) (solm_\w+)\((.*?)\)", source, re.DOTALL | re.MULTILINE):
        types = [_type(one.split()[0], one) for one in arguments.split(",") if one]
        functions[name] = _type(returns, returns), types
    return functions


CONSTANTS, STRUCTS = _constants(_source("structs.h")), _structs(_source("structs.h"))
Sizes, Matrix, Product, Head, Rope, Norm, Mlp, Layer, Model, SparsityRules, Decider, RowState, Call = (
    STRUCTS[name]
    for name in (
        "Sizes", "Matrix", "Product", "Head", "Rope", "Norm", "Mlp", "Layer", "Model", "SparsityRules", "Decider",
        "RowState", "Call",
    )
)  # fmt: skip
PAGE, GROUP, BLOCK, STRIP, LEAST_STEPS, MOST_ROWS, MOST_QUERIES, MAGNITUDES, COUNTED = (
    CONSTANTS[name]
    for name in ("PAGE", "GROUP", "BLOCK", "STRIP", "LEAST_STEPS", "MOST_ROWS", "MOST_QUERIES", "MAGNITUDES", "COUNTED")
)


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes what the functions of a library take and return."""
    for name, (returns, arguments) in _functions(_source("api.cpp")).items():
        function = getattr(library, name)
        function.restype, function.argtypes = returns, arguments
    return library


def message() -> "ctypes.Array[ctypes.c_char]":
    """Room for what a function writes where it refuses something."""
    return ctypes.create_string_buffer(CONSTANTS["MESSAGE"])


def check(code: int, written: "ctypes.Array[ctypes.c_char]") -> None:
    """Raise what a function of the library returned and wrote: `DataError` for arguments that cannot be, `SolmError`
    without memory."""
    if code:
        raise (DataError if code == INVALID else SolmError)(written.value.decode())
