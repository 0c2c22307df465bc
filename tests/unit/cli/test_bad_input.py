"""What a user can get wrong on the command line: one line that names the option, exit code 2 or 3, no model loaded."""

import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import solm
from helpers.models import tiny_model
from helpers.policies import under_values
from helpers.timings import made_curve, made_timings
from solm.cli.main import main
from solm.core.actions import ActionSpace
from solm.core.sparsity import SparsityConfig
from solm.policies.artifact import PolicyConfig, TrainedPolicy
from solm.policies.value_network import ValueNetwork
from solm.policies.value_policy import ValueConfig

MODEL = ["--model", "{model}"]
FITTED = [*MODEL, "--policy", "{fitted}"]
BARE = ["--model", "{root}/bare"]

# By command: options after its name, exit code, and what the line must say.
GENERATE: list[tuple[list[str], int, str]] = [
    ([], 2, "PROMPT: it is missing"),
    ([*MODEL, " "], 2, "PROMPT: the prompt is empty"),
    (["--model", "{root}/none.gguf", "x"], 2, "--model: no GGUF file at"),
    (["--model", "{root}/cut.gguf", "x"], 3, "the file ends within it"),
    (["--model", "{root}", "x"], 2, "--model: {root} is a folder without config.json"),
    (["--model", "{root}/broken", "x"], 3, "--model: {root}/broken/config.json is damaged: it is not JSON"),
    (["--model", "builtin:gpt5", "x"], 2, "--model: unknown built-in model 'builtin:gpt5'"),
    (["--model", "nobody/nothing", "x"], 2, "--model: cannot load model 'nobody/nothing'"),
    ([*MODEL, "--draft", "{root}/none.gguf", "x"], 2, "--draft: no GGUF file at"),
    ([*MODEL, "--draft", "builtin:smollm2-135m", "x"], 2, "--draft: builtin:smollm2-135m has another vocabulary than"),
    ([*MODEL, "--budget", "loss=-1", "x"], 2, "--budget: budget loss=-1 is out of range: a loss must be above 0"),
    ([*BARE, "x"], 2, "--model: model '{root}/bare' has no tokenizer that can be read"),
    ([*MODEL, "--revision", "x", "hi"], 2, "--revision: it goes with a model on the hub"),
    ([*MODEL, "--policy", "{policy}", "--budget", "0.01", "x"], 2, "--budget: budget 0.01 is unreachable"),
    ([*MODEL, "--policy", "static", "--budget", "half", "x"], 2, "--budget: budget 'half' is not a number"),
    ([*MODEL, "--policy", "dense", "--budget", "0.7", "x"], 2, "--budget: 0.7 needs another --policy"),
    ([*MODEL, "--backend", "torch", "--budget", "ms=4", "x"], 2, "needs step timings of this machine"),
    ([*FITTED, "--budget", "speed=9", "x"], 2, "--budget: budget speed=9 is unreachable: steps of this model read 0."),
    ([*MODEL, "--timings", "{root}/none.json", "x"], 2, "--timings: no file {root}/none.json"),
    ([*MODEL, "--timings", "{root}/others.json", "x"], 2, "--timings: these timings are of other, not of model"),
    ([*MODEL, "--timings", "{root}/bad.json", "x"], 3, "--timings: {root}/bad.json is damaged"),
    ([*MODEL, "--policy", "{root}/nothing", "x"], 2, "--policy: no policy at '{root}/nothing'"),
    ([*MODEL, "--policy", "builtin:smollm2-135m-cpu", "x"], 2, "--policy: this policy belongs to"),
    ([*MODEL, "--policy", "auto", "x"], 2, "--policy: no policy ships for this llama model"),
    ([*MODEL, "--policy", "{root}/damaged", "x"], 3, "--policy: "),
    ([*MODEL, "--max-new-tokens", "0", "x"], 2, "--max-new-tokens: Input should be greater than or equal to 1"),
    ([*MODEL, "--max-new-tokens", "9999", "x"], 2, "--max-new-tokens: 9999 tokens exceed this model's"),
    ([*MODEL, "--max-new-tokens", "20", "x" * 500], 2, "PROMPT: a prompt of 500 and 20 new tokens exceed"),
    ([*MODEL, "--system", "Be brief.", "x"], 2, "--system: this model has no chat template"),
    ([*MODEL, "--temperature", "-1", "x"], 2, "--temperature: Input should be greater than or equal to 0"),
    ([*MODEL, "--top-p", "1.5", "x"], 2, "--top-p: Input should be less than or equal to 1"),
    ([*MODEL, "--set", "min_p", "x"], 2, "--set: 'min_p' is not NAME=VALUE"),
    (
        [*MODEL, "--set", "minimum_p=0.1", "x"],
        2,
        "--set: unknown generation option 'minimum_p'; choose among do_sample,",
    ),
    ([*MODEL, "--set", "min_p=0.1", "--set", "min_p=0.2", "x"], 2, "--set: min_p is given twice"),
    ([*MODEL, "--backend", "native", "x"], 2, "--backend: unknown backend 'native'; choose one of torch"),
    ([*MODEL, "--precision", "int3", "x"], 2, "--precision: unknown precision 'int3'; choose one of auto"),
    ([*MODEL, "--precision", "bfloat16", "--kv-cache-dtype", "int8", "x"], 2, "--kv-cache-dtype: an int8"),
    ([*MODEL, "--dtype", "float8", "x"], 2, "--dtype: unknown dtype 'float8'"),
    ([*MODEL, "--backend", "cpu", "--dtype", "float32", "x"], 2, "--dtype: float32 needs --backend torch"),
    ([*MODEL, "--threads", "0", "x"], 2, "--threads: threads 0 is out of range"),
    ([*MODEL, "--out", "{text}/reply.json", "x"], 2, "--out: cannot write {text}/reply.json"),
    ([*MODEL, "--out", "{root}", "x"], 2, "--out: {root} is a folder; give a file"),
]
CHAT = [
    ([*FITTED, "--budget", "speed=9"], 2, "--budget: budget speed=9 is unreachable: steps of this model read 0."),
    ([*MODEL, "--budget", "0.7", "--policy", "dense"], 2, "--budget: 0.7 needs another --policy"),
    ([*MODEL, "--timings", "{root}/elsewhere.json", "--backend", "cpu"], 2, "of torch float32, not of cpu; choose"),
    ([*MODEL, "--seed", "x"], 2, "--seed: "),
]
SERVE = [
    ([*MODEL, "--backend", "torch", "--slo-floor", "speed=1.5"], 2, "--slo-floor: a budget in time needs step timings"),
    ([*MODEL, "--slo-floor", "loss=0.1"], 2, "--slo-floor: a budget as a loss needs a policy"),
    ([*MODEL, "--set", "priority_floors.low=0"], 2, "--set priority_floors.low: budget 0.0 is out of range"),
    (
        [*MODEL, "--set", "max_wait=5"],
        2,
        "--set max_wait: there is no such setting; choose among max_rows",
    ),
    (
        [*MODEL, "--set", "drain_seconds=-1"],
        2,
        "--set drain_seconds: Input should be greater than or equal",
    ),
    ([*MODEL, "--max-rows", "0"], 2, "--max-rows: Input should be greater than or equal to 1 (got 0)"),
    ([*MODEL, "--max-model-len", "600"], 2, "--max-model-len: 600 tokens exceed this model's context of 512"),
    ([*MODEL, "--api-key", " "], 2, "--api-key: it is empty"),
    ([*MODEL, "--api-key", "a:1", "--api-key", "a:2"], 2, "API keys: two keys are named 'a'"),
    ([*MODEL, "--name", ""], 2, "--name: it is empty"),
    ([*MODEL, "--port", "70000"], 2, "--port: Input should be less than or equal to 65535"),
    ([*MODEL, "--port", "{port}"], 2, "--port: cannot listen on 127.0.0.1 port {port}"),
    ([*MODEL, "--uds", "{text}"], 2, "--uds: cannot listen on {text}: Address already in use"),
    ([*MODEL, "--uds", "{root}/" + "s" * 108], 2, ": AF_UNIX path too long"),
    ([*BARE, "--port", "8765"], 2, "--model: model '{root}/bare' has no tokenizer that can be read"),
]
SPACED = [*MODEL, "--space", "joint-8"]
LONG = [*FITTED, "--context", "364"]
EVAL = [
    ([], 2, "--policy: give a policy to evaluate, or --space"),
    ([*MODEL, "--seed", "-1"], 2, "--seed: Input should be greater than or equal to 0"),
    ([*MODEL, "--policy", "dense"], 2, "--policy: dense is no trained policy"),
    ([*SPACED[:-1], "joint-9"], 2, "--space: unknown action space 'joint-9'"),
    ([*MODEL, "--policy", "{policy}", "--space", "joint-27"], 2, "--space: mlp level 0.4 is below what this policy"),
    ([*SPACED, "--timings", "{root}/others.json"], 2, "--timings: these timings are of other, not of model"),
    ([*SPACED, "--budgets", "a"], 2, "--budgets: budget 'a' is not a number"),
    ([*SPACED, "--budgets", "0.6,keep=0.7"], 2, "--budgets: '0.6,keep=0.7' is no list of budgets in one unit"),
    ([*SPACED, "--budgets", "loss=0.1"], 2, "--budgets: a budget as a loss needs a policy"),
    ([*SPACED, "--budgets", "0.6,0.6"], 2, "--budgets: budget 0.6 comes down to 0.6, as another does"),
    ([*LONG, "--budgets", "0.01"], 2, "--budgets: budget 0.01 is unreachable: at 428 tokens steps take 0."),
    ([*LONG, "--budgets", "loss=5,loss=6"], 2, "--budgets: budget loss=6 comes down to 0."),
    ([*SPACED, "--texts", "0"], 2, "--texts: Input should be greater than or equal to 1 (got 0)"),
    ([*SPACED, "--context", "500"], 2, "--length: 628 tokens exceed this model's context of 512"),
    ([*SPACED, "--out", "{root}/a.pdf"], 2, "--out: {root}/a.pdf is neither .json nor .html"),
    ([*SPACED, "--baselines", "quest"], 2, "--baselines: unknown baseline 'quest'"),
    ([*SPACED, "--baselines", "teal"], 2, "--baselines: teal needs text to calibrate"),
    ([*SPACED, "--baselines", "upper-bits"], 2, "--baselines: upper-bits needs a policy that chooses weight bits"),
    ([*SPACED, "--context", "90", "--data", "{root}/short.txt"], 2, "--data: {root}/short"),
    ([*SPACED, "--context", "90", "--data", "{root}/bad.jsonl"], 2, "line 2: not JSON"),
]
OTHERS = [
    (["generat"], 2, "No such command 'generat'"),
    (["sweep", "a.yaml"], 2, "there is no command sweep any more: run solm eval"),
    (["train", "--help"], 2, "there is no command train any more: solm fit makes a policy; python -m solm.paper"),
    (["bench", *MODEL, "--context", "0"], 2, "--context: 0 is out of range: it must be at least 1"),
    (["bench", *MODEL, "--context", "4096"], 2, "--context: 4112 tokens exceed this model's context of 512"),
    (["fit", "{root}/none.gguf", "--data", "{text}", "--out", "{root}/fit"], 2, "MODEL: no GGUF file at"),
    (
        ["fit", "{model}", "--data", "{root}/short.txt", "--out", "{root}/fit"],
        2,
        "--data: {root}/short.txt holds",
    ),
    (["fit", "{model}", "--data", "{text}", "--out", "{root}/fit", "--minutes", "nan"], 2, "--minutes: nan is out of"),
    (["inspect", "{root}/broken"], 3, "{root}/broken/config.json is damaged: it is not JSON"),
    (["inspect", "{root}/not.gguf"], 3, "not.gguf is not a GGUF file"),
    (["policies", "drop"], 2, "ACTION: unknown action 'drop'; choose list, show or push"),
    (["policies", "push", "a"], 2, "ACTION: push takes 2 names, got 1"),
    (["policies", "list", "--revision", "x"], 2, "--revision: it goes with show, and a policy"),
    (["policies", "show", "{root}/nothing"], 2, "NAME: no policy at '{root}/nothing'"),
    (["policies", "show", "{root}/damaged"], 3, "NAME: "),
    (["policies", "show", "nobody/nothing/at/all"], 2, "NAME: no policy at 'nobody/nothing/at/all'"),
    (["policies", "push", "{policy}", "nobody/nothing/at/all"], 2, "REPOSITORY: cannot upload to the hub repository"),
]
CASES = [
    *((["generate", *words], code, line) for words, code, line in GENERATE),
    *((["chat", *words], code, line) for words, code, line in CHAT),
    *((["serve", *words], code, line) for words, code, line in SERVE),
    *((["eval", "--data", "{text}", *words], code, line) for words, code, line in EVAL),
    *OTHERS,
]


@pytest.fixture(scope="module")
def places(tmp_path_factory, byte_tokenizer):
    """What the cases name: a tiny model, a policy for it, texts, damaged files, a port in use."""
    root = tmp_path_factory.mktemp("bad")
    tiny_model("llama", torch.float32).save_pretrained(root / "model")
    byte_tokenizer.save_pretrained(root / "model")
    with solm.attach(tiny_model("llama", torch.float32)) as lm:
        config = PolicyConfig(
            base=lm.identity, space=ActionSpace.preset("joint-8"), sparsity=SparsityConfig(),
            network=ValueConfig(base_hidden=64, layer=1, grid=ActionSpace.preset("joint-8"), width=16),
        )  # fmt: skip
        TrainedPolicy(config, ValueNetwork(config.network)).save_pretrained(root / "policy")
        TrainedPolicy(config, ValueNetwork(config.network)).save_pretrained(root / "damaged")
        fitted = under_values(lm, SparsityConfig.preset("cpu")).trained
        fitted.curve = made_curve()
        fitted.save_pretrained(root / "fitted")
        others = made_timings(model="other")
        (root / "others.json").write_text(others.model_dump_json())
        elsewhere = made_timings(model="model", backend="torch float32")
        (root / "elsewhere.json").write_text(elsewhere.model_dump_json())
    weights = root / "damaged" / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    (root / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 50)
    (root / "short.txt").write_text("too short")
    (root / "bad.jsonl").write_text('{"text": "x"}\nnope\n')
    (root / "bad.json").write_text("{")
    (root / "broken").mkdir()
    (root / "broken" / "config.json").write_text("{")
    (root / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00\x01")
    (root / "not.gguf").write_bytes(b"PK" * 40)
    tiny_model("llama", torch.float32).save_pretrained(root / "bare")  # no tokenizer
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        yield SimpleNamespace(
            root=root,
            model=root / "model",
            policy=root / "policy",
            fitted=root / "fitted",
            text=root / "text.txt",
            port=used.getsockname()[1],
        )


@pytest.mark.parametrize(("arguments", "code", "words"), CASES, ids=[" ".join(case[0]) for case in CASES])
def test_a_mistake_is_one_line_before_anything_is_loaded(arguments, code, words, places, monkeypatch, capsys):
    def loaded(*_: object, **__: object) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr("solm.backends.torch.load.load_base", loaded)
    monkeypatch.setattr("solm.backends.torch.load.dequantised", loaded)
    known = vars(places)
    monkeypatch.setattr(sys, "argv", ["solm", *(part.format(**known) for part in arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    assert ended.value.code == code, shown.err
    assert shown.err.count("\n") == 1, shown.err
    assert shown.err.startswith("solm: ")
    assert words.format(**known) in shown.err
    assert shown.out == ""


def test_a_failed_command_leaves_the_files_it_would_have_written(places, tmp_path, monkeypatch, capsys):
    mine = tmp_path / "mine.json"
    mine.write_text("mine")
    for more in (["--budgets", "a"], ["--texts", "0"]):
        words = ["eval", "--model", places.model, "--space", "joint-8", "--data", places.text, "--out", mine, *more]
        monkeypatch.setattr(sys, "argv", ["solm", *map(str, words)])
        with pytest.raises(SystemExit):
            main()
        assert mine.read_text() == "mine"
    assert not list(Path(tmp_path).glob(".*.lock"))
