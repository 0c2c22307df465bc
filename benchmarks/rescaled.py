"""A GGUF file of Llama's family in 8 bits whose weights lie on no grid of 4 bits, though the model computes the same.

    python benchmarks/rescaled.py FILE-q4_k_m.gguf OUT-q8_0.gguf

A file of 4 to 6 bits holds numbers that rounding to 4 bits changes little. So what 8-bit weights lose when only their
upper 4 bits are read cannot be measured on a copy of it in Q8_0. Here norms are multiplied into the matrices that read
them, and hidden channels are scaled between up and down, as `solm.research.off_grid` does with a loaded model. Matrices
are stored in Q8_0, but for the embedding, which is copied.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter, quants
from gguf.constants import GGMLQuantizationType as TensorType
from gguf.constants import LlamaFileType

_READ_BY = {"attn_norm": ("attn_q", "attn_k", "attn_v"), "ffn_norm": ("ffn_gate", "ffn_up")}
"""Norms, and the matrices that read what they put out."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    reader = GGUFReader(options.file)
    writer = GGUFWriter(options.out, str(reader.fields["general.architecture"].contents()))
    copy_fields(reader, writer)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blk."))
    for name, tensor in tensors.items():
        if not name.startswith("blk."):
            writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)
    for layer in range(layers):
        prefix = f"blk.{layer}."
        found = {
            name.removeprefix(prefix).removesuffix(".weight"): quants.dequantize(tensor.data, tensor.tensor_type)
            for name, tensor in tensors.items() if name.startswith(prefix)
        }  # fmt: skip
        rescale(found)
        for name, weight in found.items():
            kind = TensorType.Q8_0 if weight.ndim == 2 else TensorType.F32
            whole = prefix + (name if name.endswith(".bias") else name + ".weight")
            writer.add_tensor(whole, quants.quantize(weight, kind), raw_dtype=kind)
        print(f"layer {layer + 1}/{layers}", file=sys.stderr)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return 0


def copy_fields(reader: GGUFReader, writer: GGUFWriter) -> None:
    """Everything that a file says of itself, but for the type of its tensors."""
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = LlamaFileType.MOSTLY_Q8_0 if name == "general.file_type" else field.contents()
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, field.types[0], inner)


def rescale(layer: dict[str, np.ndarray]) -> None:
    """Other numbers for the same function; of a layer's tensors [outputs, inputs] by their names in GGUF files."""
    for norm, readers in _READ_BY.items():
        for name in readers:
            layer[name] = layer[name] * layer[norm]
        layer[norm] = np.ones_like(layer[norm])
    scale = np.sqrt(np.linalg.norm(layer["ffn_up"], axis=1) / np.linalg.norm(layer["ffn_down"], axis=0))
    layer["ffn_up"] = layer["ffn_up"] / scale[:, None]
    layer["ffn_down"] = layer["ffn_down"] * scale


if __name__ == "__main__":
    sys.exit(main())
