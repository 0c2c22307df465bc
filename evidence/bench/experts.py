"""A mixture of experts of the real sizes of Qwen3-30B-A3B, with random weights and few of its layers.

    python evidence/bench/experts.py --tokenizer FILE.gguf --layers 12 --peers --out experts.json

Bytes of weights that a step reads, by the pages that the kernel has to map for it, beside what the model's sizes say;
milliseconds of steps that visit all of a token's experts or fewer, and of one row and several; prompts; memory; beside
llama.cpp on the same file. Random routers spread tokens over all experts alike. What leaving out experts loses cannot
be seen from random weights. The file is made once, in the cache folder; its tokens are those of the file --tokenizer.
"""

import argparse
import ctypes
import os
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGUFReader, GGUFWriter, LlamaFileType
from gguf.constants import GGMLQuantizationType as TensorType

import solm
from evidence.bench import peers
from evidence.bench.common import STEPS, clock, constant_step, finish, in_turns, parser, spread
from evidence.bench.timed_engines import Theirs, steps
from solm.backends.cpu.files.weight_cache import SUFFIX
from solm.core.cost import relative_bytes
from solm.core.files import cache_folder
from solm.core.provenance import memory_bandwidth

HIDDEN, HEADS, KV_HEADS, HEAD, EXPERTS, VISITED, WIDTH, VOCABULARY = 2048, 32, 4, 128, 128, 8, 768, 151_936
"""Of https://huggingface.co/Qwen/Qwen3-30B-A3B, which has 48 layers."""
SHARES = (1.0, 0.75, 0.5, 0.25)
"""Of the experts that a token visits."""
EVERY_LOGIT = "dense, every logit"
_UNMAP = 4
"""Linux's number of MADV_DONTNEED."""
SMALL_PAGES = "/dev/shm"
"""A file system in memory whose files have small pages, so that few bytes are mapped beside those that are read."""


def write_model(path: Path, tokenizer: Path, layers: int) -> None:
    """A GGUF file of random blocks, in types as Q4_K_M has them, with the tokenizer of another file."""
    writer, draw = GGUFWriter(path, "qwen3moe"), np.random.default_rng(0)
    writer.add_name(path.stem)
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_block_count(layers)
    writer.add_context_length(32768)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(VISITED * WIDTH)  # of layers without experts, of which there are none
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(VISITED)
    writer.add_expert_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    for name, field in GGUFReader(tokenizer).fields.items():
        if name.startswith("tokenizer."):
            writer.add_key_value(name, field.contents(), field.types[0], field.types[1] if field.types[1:] else None)

    def matrix(name: str, outputs: int, inputs: int, kind: TensorType = TensorType.Q4_K, count: int = 0) -> None:
        rows = outputs * max(count, 1)
        blocks = random_blocks(draw, kind, rows, inputs)
        writer.add_tensor(name, blocks.reshape(count, outputs, -1) if count else blocks, raw_dtype=kind)

    def ones(name: str, length: int) -> None:
        writer.add_tensor(name, np.ones(length, np.float32))

    matrix("token_embd.weight", VOCABULARY, HIDDEN)
    ones("output_norm.weight", HIDDEN)
    matrix("output.weight", VOCABULARY, HIDDEN, TensorType.Q6_K)
    for layer in range(layers):
        better = TensorType.Q4_K if layer % 2 else TensorType.Q6_K
        block = f"blk.{layer}"
        for norm, length in (("attn_norm", HIDDEN), ("attn_q_norm", HEAD), ("attn_k_norm", HEAD), ("ffn_norm", HIDDEN)):
            ones(f"{block}.{norm}.weight", length)
        matrix(f"{block}.attn_q.weight", HEADS * HEAD, HIDDEN)
        matrix(f"{block}.attn_k.weight", KV_HEADS * HEAD, HIDDEN)
        matrix(f"{block}.attn_v.weight", KV_HEADS * HEAD, HIDDEN, better)
        matrix(f"{block}.attn_output.weight", HIDDEN, HEADS * HEAD)
        writer.add_tensor(f"{block}.ffn_gate_inp.weight", draw.normal(0, 0.05, (EXPERTS, HIDDEN)).astype(np.float32))
        matrix(f"{block}.ffn_gate_exps.weight", WIDTH, HIDDEN, count=EXPERTS)
        matrix(f"{block}.ffn_up_exps.weight", WIDTH, HIDDEN, count=EXPERTS)
        matrix(f"{block}.ffn_down_exps.weight", HIDDEN, WIDTH, better, EXPERTS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_blocks(draw: np.random.Generator, kind: TensorType, outputs: int, inputs: int) -> np.ndarray:
    """Rows of K-quants, uint8 [outputs, bytes], whose weights have a mean of about 0 and deviate by 0.02 to 0.03."""
    values, size = GGML_QUANT_SIZES[kind]
    count = outputs * inputs // values
    blocks = np.frombuffer(draw.bytes(count * size), np.uint8).reshape(count, size).copy()
    scales = {208: 1.5e-5} if kind == TensorType.Q6_K else {0: 1.2e-4, 2: 9e-4}  # at these bytes, float16
    for place, scale in scales.items():
        blocks[:, place : place + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    return blocks.reshape(outputs, -1)


def weights_read(run: Callable[[], object]) -> int:
    """Bytes of the packed weights' pages that a call reads. They are unmapped, and the kernel maps what is read again,
    64 KiB at a time."""
    address, length, _ = _mapped_weights()
    if ctypes.CDLL(None).madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), _UNMAP):
        raise SystemExit("the kernel does not unmap the weights")
    run()
    return _mapped_weights()[2]


def _mapped_weights() -> tuple[int, int, int]:
    """Of the last loaded file of packed weights the address, and how many bytes can be and are mapped there."""
    address = length = present = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *more = line.split()
        if not first.endswith(":"):
            ours = line.endswith(SUFFIX) and SMALL_PAGES in line
            if ours:
                address, end = (int(part, 16) for part in first.split("-"))
                length = end - address
        elif ours and first == "Rss:":
            present = int(more[0]) * 1024
    return address, length, present


def read_by_share(model: str, context: int) -> dict[str, dict[str, float]]:
    """By share of the experts `read_bytes`, of the packed weights that a step of one row with every logit reads, and
    `computed_bytes`, what the sizes say."""
    found: dict[str, dict[str, float]] = {"read_bytes": {}, "computed_bytes": {}}
    built = cache_folder().glob("engine-*.so")
    with TemporaryDirectory(dir=SMALL_PAGES) as folder, patch.dict(os.environ, SOLM_CACHE=folder):
        for library in built:
            shutil.copy(library, folder)
        lm = solm.load(model, backend="cpu", sparsity=solm.SparsityConfig.preset("experts"))
        text = torch.randint(0, VOCABULARY, (1, context + 1), generator=torch.Generator().manual_seed(0))
        session = lm.session(capacity=context + 1)
        session.prefill(text[:, :-1])
        for share in SHARES:
            step = constant_step(session.fork(1, STEPS), (1.0, share, 16), 0)
            found["read_bytes"][f"{share:g}"] = weights_read(lambda: step(text[:, -1]))  # noqa: B023
            part = relative_bytes(np.array([1.0, share, 1.0]), 0, lm.shapes, lm.sparsity)
            found["computed_bytes"][f"{share:g}"] = float(part) * lm.shapes.step_bits / 8
    return found


def measure(lm: solm.LanguageModel, asked: argparse.Namespace) -> dict[str, Any]:
    """`prefill_tokens_per_second`, and by engine and setting `step_ms` by rows."""
    texts = torch.randint(0, VOCABULARY, (asked.rows, asked.context + 1), generator=torch.Generator().manual_seed(0))
    arms = {EVERY_LOGIT: (1.0, 0)} | {f"experts {share:g}": (share, 1) for share in SHARES}
    sessions, taken = [], dict[str, list[float]]()
    engines = {
        name: Theirs(peer) for name, peer in peers.find(asked, Path(asked.model), torch.get_num_threads()).items()
    }
    for peer in engines.values():
        peer.texts(texts)
    for row in range(asked.rows):
        sessions.append(session := lm.session(capacity=asked.context + 1 + STEPS))
        taken.setdefault("solm", []).append(clock(lambda: session.prefill(texts[row : row + 1, :-1])))  # noqa: B023
        for name, peer in engines.items():
            taken.setdefault(name, []).append(peer.read(row))
    found: dict[str, Any] = {
        name: {"prefill_tokens_per_second": spread([1e3 * asked.context / each for each in times]), "step_ms": {}}
        for name, times in taken.items()
    }
    for rows in (1, asked.rows):
        turns, parent = dict[tuple[str, str], Callable[[], float]](), sessions[0].fork(1, STEPS)
        for other in sessions[1:rows]:
            parent.join(other.fork(1, STEPS))
        for setting, (share, exact) in arms.items():
            fork = parent.fork(1, STEPS)
            step, last = constant_step(fork, (1.0, share, 16), exact), texts[:rows, -1]
            turns["solm", setting] = lambda fork=fork, step=step, last=last: median(steps(fork, step, last))  # type: ignore[misc]
        for name, peer in engines.items():
            turns[name, "dense"] = lambda run=peer.turns(rows)["dense"]: median(run())  # type: ignore[misc]
        for (name, setting), times in in_turns(turns, asked.rounds).items():
            found[name]["step_ms"].setdefault(setting, {})[str(rows)] = spread(times)
    return found


def main() -> None:
    options = parser(__doc__, "rounds")
    options.add_argument("--tokenizer", type=Path, required=True, help="a GGUF file of Qwen2 or Qwen3")
    options.add_argument("--layers", type=int, default=12, help="of the 48 of the whole model")
    options.add_argument("--context", type=int, default=512, help="tokens before the steps")
    options.add_argument("--rows", type=int, default=4, help="rows of a step, beside one")
    options.add_argument("--peers", nargs="?", const="llama.cpp", default="", help="beside llama.cpp")
    options.add_argument("--peer-python", action="append", default=[], help="the Python of another environment with it")
    asked = options.parse_args()
    for name in ("layers", "context", "rows", "rounds"):
        if getattr(asked, name) < 1:
            options.error(f"--{name} {getattr(asked, name)}: must be at least 1")
    if not asked.tokenizer.is_file():
        options.error(f"--tokenizer {asked.tokenizer}: there is no such file")
    asked.peers = asked.peers.split(",") if asked.peers else []
    file = cache_folder() / f"qwen3-30b-a3b-{asked.layers}-layers-random.gguf"
    if not file.exists():
        print(f"writing {file.name}", file=sys.stderr)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_model(file.with_suffix(".part"), asked.tokenizer, asked.layers)
        file.with_suffix(".part").replace(file)
    asked.model = str(file)
    lm = solm.load(asked.model, backend="cpu", sparsity=solm.SparsityConfig.preset("experts"))
    results = {"file_bytes": file.stat().st_size, "bandwidth_gb_per_second": memory_bandwidth()}
    results["engines"] = measure(lm, asked)
    results["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    del lm
    results |= read_by_share(asked.model, asked.context)
    finish("experts", asked, results, [f"{name}: {told}" for name, told in results.items()])


if __name__ == "__main__":
    main()
