"""Files that strangers send, under a coverage-guided fuzzer: python tests/fuzz/readers.py TARGET [OPTION ...].

TARGET is `gguf` (headers, tokenizers and weights of GGUF files) or `policy` (folders of policies). Options are
libFuzzer's. Whatever comes is read or refused (`SolmError`); any other error is a bug, whose input lies in build/fuzz.
`make fuzz` runs both.
"""

import json
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import atheris
from gguf import GGUFWriter
from gguf.constants import GGMLQuantizationType as TensorType

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build/fuzz"
MARK = b"\n-----\n"
"""Between the parts of a policy: config, curve and weights."""
sys.path.insert(0, str(ROOT / "tests"))

with atheris.instrument_imports(include=["solm"]):
    from solm.backends.cpu.files.layout import layout_of
    from solm.backends.cpu.files.sources import GgufFile
    from solm.backends.gguf_header import _read, read_header
    from solm.backends.tokenizer import _from_header
    from solm.core.budget import NET_RATES
    from solm.core.errors import SolmError
    from solm.core.files import read_json
    from solm.policies.artifact import CONFIG, CURVE, WEIGHTS, TrainedPolicy, digest_of, shipped

FOLDER = Path(tempfile.mkdtemp(prefix="solm-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def gguf(data: bytes) -> None:
    path = FOLDER / "model.gguf"
    path.write_bytes(data)
    _read.cache_clear()  # two files of one size within a tick of the clock look the same
    header = read_header(path)
    _from_header(header)
    layout_of(GgufFile(path), "auto")


def gguf_seeds() -> dict[str, bytes]:
    from helpers.gguf_files import write_gguf

    path = FOLDER / "seed.gguf"
    small = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16,
             "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
    found = {}
    for family in ("llama", "gemma3_text", "gpt_oss"):
        write_gguf(path, family, lambda _: TensorType.Q8_0, **small)
        found[family] = path.read_bytes()
    writer = GGUFWriter(path, "qwen2")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(["a", "b", "ab", "<|end|>"])
    writer.add_token_types([1, 1, 1, 3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(3)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return found | {"tokenizer": path.read_bytes()}


def policy(data: bytes) -> None:
    config, curve, weights = [*data.split(MARK, 2), b"", b""][:3]
    folder = FOLDER / "policy"
    folder.mkdir(exist_ok=True)
    (folder / WEIGHTS).write_bytes(weights)
    (folder / CURVE).write_bytes(curve)
    (folder / CONFIG).write_bytes(config)
    content = read_json(folder / CONFIG)
    if isinstance(content, dict):  # else nothing would get past the digest
        (folder / CONFIG).write_text(json.dumps(content | {"digest": digest_of(content, weights)}))
    made = TrainedPolicy.from_pretrained(folder)
    made.split(0.7, NET_RATES, made.config.space.shares)
    if made.curve is not None:
        made.curve.markdown()
        made.curve.opening()


def policy_seeds() -> dict[str, bytes]:
    from helpers.policies import SPARSITY, PolicyConfig, network
    from solm.policies.identity import BaseIdentity

    values, folder = network(layer=1), FOLDER / "seed"
    base = BaseIdentity(name="tiny", family="llama", hidden=64, layers=2, vocabulary=259)
    config = PolicyConfig(base=base, space=values.config.grid, sparsity=SPARSITY, network=values.config)
    TrainedPolicy(config, values).save_pretrained(folder)
    shown = Path(sys.modules[TrainedPolicy.__module__].__file__).parent / "builtin"
    curves = [path.read_bytes() for path in sorted(shown.glob(f"*/{CURVE}"))][:1] or [b"{}"]
    assert shipped()
    return {"tiny": MARK.join([(folder / CONFIG).read_bytes(), curves[0], (folder / WEIGHTS).read_bytes()])}


TARGETS = {"gguf": (gguf, gguf_seeds), "policy": (policy, policy_seeds)}
READABLE = ("llama", "tiny")
"""Seeds that are not refused."""


def main() -> None:
    name, *options = sys.argv[1:]
    read, seeds = TARGETS[name]
    corpus = BUILD / name
    corpus.mkdir(parents=True, exist_ok=True)
    for seed, content in seeds().items():
        (corpus / seed).write_bytes(content)
        if seed in READABLE:
            read(content)  # else nothing would get far

    def once(data: bytes) -> None:
        with suppress(SolmError):
            read(data)

    limits = ["-max_len=32768", "-timeout=60", "-rss_limit_mb=4096", f"-artifact_prefix={BUILD}/{name}-"]
    atheris.Setup([sys.argv[0], *limits, *options, str(corpus)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
