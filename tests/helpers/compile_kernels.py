"""Compiles every Triton kernel for a GPU that need not be here: python -m helpers.compile_kernels CAPABILITY DTYPE."""

import sys

import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_kernel

from solm.backends.torch.triton import channel_product as product
from solm.backends.torch.triton import page_attention as pages


def kernel_sources(dtype):
    """Every kernel with the arguments that a model of heads of 128 launches it with."""
    values = {"bfloat16": "*bf16", "float32": "*fp32"}[dtype]
    operand = getattr(tl, dtype)
    tile = pages.tokens_at_once(256, 2 if dtype == "bfloat16" else 4)
    head = {"GROUP": 4, "SIZE": 128, "SIZE_BLOCK": 128, "HAS_PREFIX": True}
    kernels = {
        pages._score_pages: {**head, "GROUP_BLOCK": 4, "BLOCK": 32},
        pages._choose_pages: {"SINKS": 1, "PAGE": 16, "BLOCK": 2048},
        pages._read_pages: {
            **head, "GROUP_BLOCK": 16, "VALUE_SIZE": 128, "VALUE_BLOCK": 128, "PAGE": 16, "BLOCK": tile,
            "SOFTCAP": True, "OPERAND": operand,
        },
        product._multiply: {"ROWS": 16, "CHANNELS": 64, "OUTPUTS": 128, "OPERAND": operand},
    }  # fmt: skip
    integers = {"positions": "*i64", "base": "*i64", "window_start": "*i64", "budget": "*i64", "chosen": "*i32"}
    others = {"counts": "*i32", "scores": "*fp32", "output": "*fp32", "logs": "*fp32", "parts": "*fp32"}
    stored = ("query", "x", "weight", *(f"{where}_{what}" for where in ("prefix", "own") for what in
              ("low", "high", "keys", "values")))  # fmt: skip
    types = {**integers, **others, **dict.fromkeys(stored, values), "softcap": "fp32"}
    aligned = [["tt.divisibility", 16]]
    for kernel, constants in kernels.items():
        names = kernel.arg_names
        assert all(name in constants for name in names if name.isupper())
        signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
        attributes = {(place,): aligned for place, name in enumerate(names) if signature[name].startswith("*")}
        yield ASTSource(kernel, signature, constexprs=constants, attrs=attributes)


def main(capability: int, dtype: str) -> None:
    for source in kernel_sources(dtype):
        built = compile_kernel(source, target=GPUTarget("cuda", capability, 32), options={"num_stages": 2})
        assert len(built.asm["cubin"]) > 0
        # What a program of compute capability 8.6 may take; 8.0 and 9.0 have more.
        assert built.metadata.shared <= 99 << 10, source.fn.__name__
        assert ("mma" in built.asm["ptx"]) == (dtype == "bfloat16" and "tl.dot" in source.fn.src)
        print(source.fn.__name__)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
