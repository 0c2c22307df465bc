"""`solm inspect`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solm.cli.output import Result
from solm.core.errors import DamagedFileError, SolmError

if TYPE_CHECKING:
    from solm.backends.cpu.files.sources import WeightSource
    from solm.backends.gguf_header import GgufHeader
    from solm.backends.session import Capability

_CONTEXTS = (1024, 4096, 16_384)
"""Tokens for which memory is told, beside the model's own context."""


def inspect(model: str, /, revision: str | None = None, trust_remote_code: bool = False) -> Result:
    """Say what a model is, how much memory it takes, which axes and backends work on it, and why others do not. Reads
    no weights.

    \b
    Examples:
      solm inspect builtin:smollm2-135m
      solm inspect qwen2.5-coder-0.5b-instruct-q4_k_m.gguf
      solm inspect Qwen/Qwen3-0.6B --json
    """
    from solm.backends.cpu.files.layout import readable_in_part
    from solm.backends.gguf_header import read_header
    from solm.backends.hub import local_model
    from solm.backends.names import gguf_of

    asked, model = model, local_model(model, revision)
    gguf = gguf_of(model)
    header = None if gguf is None else read_header(gguf)
    source, on_cpu = _source(model, gguf, trust_remote_code, revision)
    capability, context, on_torch = _structure(model, header, source, trust_remote_code, revision)
    reasons = dict(capability.reasons)
    if capability.shapes is not None and len(capability.sliding) == capability.shapes.layers:
        reasons.setdefault("attention", "every layer has a sliding window, which is always read whole")
    report: dict[str, Any] = {
        "model": asked,
        "family": capability.family,
        "tested": capability.tested,
        "context": context,
        "sizes": None if capability.shapes is None else capability.shapes.model_dump(),
        "tensors": header and {name: {"count": count, "bytes": size} for name, (count, size) in header.types().items()},
        "memory": None if source is None else _memory(source),
        "fit_chooses_weight_bits": source is not None and on_cpu is None and readable_in_part(source),
        "axes": _supported({axis: reasons.get(axis) for axis in capability.axes}),
        "backends": _supported({"torch": on_torch, "cpu": on_cpu}),
        "sliding_window_layers": len(capability.sliding),
    }
    return Result(report)


def _source(
    model: str, gguf: Path | None, trust_remote_code: bool, revision: str | None
) -> "tuple[WeightSource | None, str | None]":
    """The model's weights as the engine reads them, where they are on this machine, and why it cannot run it."""
    from solm.backends.cpu.engine import unsuited
    from solm.backends.cpu.files.config import from_config
    from solm.backends.cpu.files.sources import GgufFile, SafetensorsFolder
    from solm.backends.torch.load import base_config
    from solm.core.sparsity import SparsityConfig

    try:
        if gguf is None and not any(Path(model).glob("*.safetensors")):
            config = base_config(model, trust_remote_code, revision).get_text_config(decoder=True)
            try:
                return None, unsuited(from_config(config.to_dict(), model, model), SparsityConfig())
            except DamagedFileError as error:  # torch may run it nevertheless
                return None, str(error)
        source = SafetensorsFolder(Path(model)) if gguf is None else GgufFile(gguf)
    except DamagedFileError:
        raise
    except SolmError as error:
        return None, str(error)
    return source, unsuited(source.spec, SparsityConfig())


def _structure(
    model: str,
    header: "GgufHeader | None",
    source: "WeightSource | None",
    trust_remote_code: bool,
    revision: str | None,
) -> "tuple[Capability, int | None, str | None]":
    """What can be controlled, the model's context, and why the torch backend cannot run it, which reads GGUF files of
    fewer families than the engine."""
    from solm.backends.cpu.engine import shapes_of
    from solm.backends.session import Capability
    from solm.backends.torch.families import probe
    from solm.backends.torch.load import skeleton
    from solm.core.actions import AXES

    try:
        structure = skeleton(model, trust_remote_code, revision)
    except SolmError as error:
        if header is None or isinstance(error, DamagedFileError):
            raise
        if source is None:
            reasons = dict.fromkeys(AXES, "no backend runs this model")
            return Capability(header.family, False, None, reasons), header.size("context_length"), str(error)
        spec = source.spec
        return Capability(spec.family, True, shapes_of(spec), {}, spec.sliding_layers), spec.context, str(error)
    capability = probe(structure)
    config: Any = structure.config.get_text_config(decoder=True)
    if source is not None:  # transformers does not read the windows of all GGUF files
        capability = replace(capability, sliding=source.spec.sliding_layers)
    unable = None if any(capability.axes.values()) else "; ".join(dict.fromkeys(capability.reasons.values()))
    return capability, getattr(config, "max_position_embeddings", None), unable


def _memory(source: "WeightSource") -> dict[str, Any]:
    """Bytes on the cpu backend with precision auto: weights, and the cache of one row at several contexts."""
    from solm.backends.cpu.engine import VALUE_BITS, shapes_of
    from solm.backends.cpu.files.layout import cache_memory, layout_of

    layout, shapes, longest = layout_of(source, "auto"), shapes_of(source.spec), source.spec.context
    contexts = sorted({*(tokens for tokens in _CONTEXTS if tokens < longest), longest})
    return {
        "weights": layout.nbytes,
        "head": layout.head.places()["end"],
        "forms": layout.forms(),
        "contexts": [
            {"tokens": tokens}
            | {
                "bfloat16" if dtype == "auto" else dtype: {"cache": cache, "total": layout.nbytes + cache}
                for dtype, bits in VALUE_BITS.items()
                for cache in [cache_memory(shapes, tokens, False, bits)]
            }
            for tokens in contexts
        ],
    }  # fmt: skip


def _supported(reasons: dict[str, str | None]) -> dict[str, Any]:
    return {name: {"supported": reason is None, "reason": reason} for name, reason in reasons.items()}
