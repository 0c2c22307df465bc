"""Files and bodies that strangers send, under a coverage-guided fuzzer: python tests/fuzz/readers.py TARGET [OPTION...]

TARGET is `gguf` (headers, tokenizers and weights of GGUF files), `policy` (folders of policies) or `requests` (bodies
of the server's routes, until their replies would be queued). Options are libFuzzer's. Whatever comes is read or refused
(`SolmError`, or `ApiError` with a status of 4xx), in one line; any other error is a bug, whose input lies in
build/fuzz. `make fuzz` runs all, and border.cpp.
"""

import json
import sys
import tempfile
from pathlib import Path

import atheris
from gguf import GGUFWriter
from gguf.constants import GGMLQuantizationType as TensorType
from pydantic import ValidationError

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
    from solm.serving.constraints import wanted
    from solm.serving.errors import ApiError, from_validation
    from solm.serving.infill import InfillRequest
    from solm.serving.keys import ApiKey
    from solm.serving.responses import ResponsesRequest
    from solm.serving.schema import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest

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


TOOL = {"name": "sum", "description": "adds", "parameters": {"type": "object", "properties": {"a": {"enum": [1]}}}}
EFFICIENCY = {"budget": "keep=0.7", "floor": {"attention": 0.5}, "priority": "low", "guess": "auto", "policy": "static",
              "reasoning_budget": 0.9, "deadline_ms": 9, "trace": True}  # fmt: skip
CALL = {"id": "1", "type": "function", "function": {"name": "sum", "arguments": '{"a": 1}'}}
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "a"}]},
         {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "b"},
         {"role": "tool", "tool_call_id": "1", "content": "2"}]  # fmt: skip
FORMAT = {"type": "json_schema", "json_schema": {"name": "s", "schema": TOOL["parameters"], "strict": True}}
BODIES = (
    (ChatRequest, {"messages": TURNS, "tools": [{"type": "function", "function": TOOL}], "response_format": FORMAT,
                   "logit_bias": {"5": 1}, "stop": ["x"], "top_logprobs": 2, "logprobs": True, "n": 2, "top_k": 5,
                   "chat_template_kwargs": {"enable_thinking": True}, "tool_choice": "auto", "seed": 3,
                   "prediction": {"type": "content", "content": "a"}, "max_tokens": 5, "metadata": {"a": "b"}}),
    (CompletionRequest, {"prompt": [[5, 6]], "suffix": "b", "echo": True, "structured_outputs": {"regex": "a+"},
                         "efficiency": EFFICIENCY, "stream": True, "stream_options": {"include_usage": True}}),
    (ResponsesRequest, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                                  {"type": "function_call", "call_id": "1", "name": "sum", "arguments": "{}"},
                                  {"type": "function_call_output", "call_id": "1", "output": "2"},
                                  {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "b"}]}],
                        "tools": [{"type": "function", **TOOL}], "text": {"format": {"type": "text"}},
                        "reasoning": {"effort": "low"}, "instructions": "c", "max_output_tokens": 5}),
    (InfillRequest, {"input_prefix": "a", "input_suffix": "b", "input_extra": [{"filename": "f", "text": "t"}]}),
    (TokenizeRequest, {"messages": TURNS}), (DetokenizeRequest, {"tokens": [5, 6]}),
)  # fmt: skip
VALUES = (None, True, 0, 1, -1, 0.5, 1e300, 2**63, 10**400, "", "a", "auto", "\n\0", "\ud800", "é" * 99, [], {}, [[]],
          [0], EFFICIENCY, CALL, TOOL, TURNS, FORMAT, "speed=2", "loss=0.1", "ms=1", "none", [{}] * 3)  # fmt: skip


def places(value, found):
    """All objects and lists within a value."""
    if isinstance(value, dict | list):
        found.append(value)
        for inner in value.values() if isinstance(value, dict) else value:
            places(inner, found)
    return found


def changed(body: dict, one) -> bytes:
    """The JSON of a body in which some values are others, or gone, or there by another name."""
    body = json.loads(json.dumps({"model": "tiny"} | body))
    while one((False, True)):
        inside = places(body, [])
        of, value = one(inside), json.loads(json.dumps(one(VALUES)))
        if isinstance(of, list):
            of[: one((0, 1))] = one(([], [value]))
            continue
        name = one([*of, *(name for other in inside if isinstance(other, dict) for name in other), "new"])
        of.pop(name, None) if one((False, True)) else of.update({name: value})
    return json.dumps(body).encode()


def requests():
    """What reads bodies up to where replies would be queued."""
    with atheris.instrument_imports(include=["solm"]):
        from helpers.models import byte_tokenizer
        from helpers.serving import tiny_service
        from helpers.thinking import TEMPLATE

    service = tiny_service(
        byte_tokenizer(), template=TEMPLATE.replace("</tool_call>", "{{ call | tojson }}</tool_call>")
    )
    service.scheduler.submit = lambda jobs: None

    class Unchecked:  # llguidance has fuzzers of its own
        def __call__(self, grammar):
            return grammar

        def convert(self, text):
            return text

    def of(request, tools=(), calls=None):
        if (chosen := wanted(request, tools, calls)) is not None:
            chosen[1](Unchecked())

    service.constraints.of = of

    def read(data: bytes) -> None:
        draw = atheris.FuzzedDataProvider(data)

        def one(of):
            return of[draw.ConsumeIntInRange(0, len(of) - 1)]

        kind, body = one(BODIES)
        text = changed(body, one) if one((False, True)) else draw.ConsumeBytes(1 << 15)
        try:
            parsed = kind.model_validate_json(text)
        except ValidationError as error:
            raise from_validation(error) from error
        if kind is TokenizeRequest:
            service.tokens(parsed.messages or parsed.prompt or "", (), parsed.told)
        elif kind is DetokenizeRequest:
            service.text(parsed.tokens)
        else:
            service.open(parsed, "x", ApiKey("x"))

    return read


def requests_seeds() -> dict[str, bytes]:
    """Numbers are drawn from the end of the data: which body, and that it is changed, but nowhere."""
    return {f"body{number}": bytes([0, 1, number]) for number in range(len(BODIES))}


TARGETS = {
    "gguf": (lambda: gguf, gguf_seeds), "policy": (lambda: policy, policy_seeds),
    "requests": (requests, requests_seeds),
}  # fmt: skip
READABLE = ("llama", "tiny", "body4", "body5")
"""Seeds that are not refused."""


def main() -> None:
    name, *options = sys.argv[1:]
    make, seeds = TARGETS[name]
    read = make()
    corpus = BUILD / name
    corpus.mkdir(parents=True, exist_ok=True)
    for seed, content in seeds().items():
        (corpus / seed).write_bytes(content)
        if seed in READABLE:
            read(content)  # else nothing would get far

    def once(data: bytes) -> None:
        try:
            read(data)
        except (SolmError, ApiError) as error:
            if getattr(error, "status", 400) >= 500 or "\n" in str(error):
                raise AssertionError(f"{error!r} is no mistake in one line") from error

    limits = ["-max_len=32768", "-timeout=60", "-rss_limit_mb=4096", f"-artifact_prefix={BUILD}/{name}-"]
    atheris.Setup([sys.argv[0], *limits, *options, str(corpus)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
