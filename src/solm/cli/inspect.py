"""`solm inspect`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from solm.cli.options import JsonOption, RevisionOption, TrustOption

if TYPE_CHECKING:
    from solm.backends.gguf_header import GgufHeader


def inspect(
    model: Annotated[str, typer.Argument(help="Hub id, folder, .gguf file or builtin:smollm2-135m.")],
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    json: JsonOption = False,
) -> None:
    """Say what a model is, which axes and backends are supported on it, and why others are not. Reads no weights.

    \b
    Examples:
      solm inspect builtin:smollm2-135m
      solm inspect qwen2.5-coder-0.5b-instruct-q4_k_m.gguf
      solm inspect Qwen/Qwen3-0.6B --json
    """
    from solm.backends.cpu.engine import unsuited_config
    from solm.backends.gguf_header import read_header
    from solm.backends.torch.families import probe
    from solm.backends.torch.load import gguf_of, skeleton
    from solm.cli.output import print_json
    from solm.core.sparsity import SparsityConfig

    gguf = gguf_of(model)
    header = None if gguf is None else read_header(gguf)
    structure = skeleton(model, trust_remote_code, revision)
    capability = probe(structure)
    on_cpu = unsuited_config(structure.config.get_text_config(decoder=True).to_dict(), model, SparsityConfig())
    on_torch = "; ".join(dict.fromkeys(capability.reasons.values())) if not any(capability.axes.values()) else None
    combines = {
        "weights that torchao quantised": None,
        "... on the cpu backend": on_cpu or "it makes int8 and int4 from float weights itself",
        "layers that wait in memory or on the disk": None,
        "layers that compute on several devices": None,
        "layers split across several processes": None,
    }

    def said(reasons: dict[str, str | None]) -> dict[str, Any]:
        return {name: {"supported": reason is None, "reason": reason} for name, reason in reasons.items()}

    config: Any = structure.config.get_text_config(decoder=True)
    report: dict[str, Any] = {
        "model": model,
        "family": capability.family,
        "tested": capability.tested,
        "context": getattr(config, "max_position_embeddings", None),
        "sizes": None if capability.shapes is None else capability.shapes.model_dump(),
        "tensors": None if header is None else _types(header),
        "axes": said({axis: capability.reasons.get(axis) for axis in capability.axes}),
        "backends": said({"torch": on_torch, "cpu": on_cpu}),
        "combines": said(combines),
        "sliding_window_layers": len(capability.sliding),
    }
    if json:
        print_json(report)
        return
    print(f"{model}: family {capability.family}{'' if capability.tested else ' (not among the tested families)'}")
    for name, size in [("context", report["context"]), *(report["sizes"] or {}).items()]:
        print(f"  {name:14} {size}")
    if header is not None:
        print("tensors")
        for name, found in _types(header).items():
            print(f"  {name:14} {found['count']:>5} tensors {found['bytes'] / 1e6:>10.1f} MB")
    for title in ("axes", "backends", "combines"):
        print(title if title != "combines" else "combines with")
        for name, found in report[title].items():
            print(f"  {name:42} {'yes' if found['supported'] else 'no: ' + found['reason']}")
    if capability.sliding and capability.shapes is not None:
        print(
            f"{len(capability.sliding)} of {capability.shapes.layers} layers have a sliding window; the attention "
            "axis acts on the others"
        )


def _types(header: "GgufHeader") -> dict[str, dict[str, int]]:
    return {name: {"count": count, "bytes": size} for name, (count, size) in header.types().items()}
