"""What a user can get wrong on the command line: one line that names the option, exit code 2 or 3, no model loaded."""

import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gguf import GGUFWriter

import solm
from helpers.models import tiny_model
from helpers.policies import under_values
from helpers.timings import made_curve, made_timings
from solm.cli.main import main
from solm.core.actions import ActionSpace
from solm.core.sparsity import SparsityConfig
from solm.policies.artifact import PolicyConfig, TrainedPolicy
from solm.policies.network import NetworkConfig

MODEL = ["--model", "{model}"]
SMALL = ["--context", "90", "--length", "9"]
OTHERS = ["--timings", "{root}/others.json"]
ELSEWHERE = ["--timings", "{root}/elsewhere.json"]
EVAL = ["eval", *MODEL, "--data", "{text}"]
SPACED = [*EVAL, "--space", "joint-8"]
FITTED = ["generate", *MODEL, "--policy", "{fitted}"]
TIMED = [*EVAL, "--policy", "{fitted}", "--context", "364"]
SHORT = ["eval", *MODEL, "--space", "joint-8", *SMALL, "--data"]
BARE = ["--model", "{root}/bare"]

# Arguments, exit code, and what the line must say.
CASES: list[tuple[list[str], int, str]] = [
    (["sweep", "a.yaml"], 2, "there is no command sweep any more: run solm eval"),
    (["train", "--help"], 2, "there is no command train any more: solm fit makes a policy; python -m solm.paper"),
    (["generat"], 2, "No such command 'generat'"),
    (["generate"], 2, "PROMPT: it is missing"),
    (["generate", *MODEL, " "], 2, "PROMPT: the prompt is empty"),
    (["generate", *MODEL, "--schedule", "static", "x"], 2, "No such option: --schedule"),
    (["generate", "--model", "{root}/none.gguf", "x"], 2, "--model: no GGUF file at"),
    (["generate", "--model", "{root}/cut.gguf", "x"], 3, "the file ends within it"),
    (["generate", "--model", "{root}", "x"], 2, "--model: {root} is a folder without config.json"),
    (["generate", "--model", "{root}/broken", "x"], 3, "--model: {root}/broken/config.json is damaged: it is not JSON"),
    (["generate", "--model", "{root}/broken", "--backend", "torch", "x"], 3, "{root}/broken/config.json is damaged"),
    (["inspect", "{root}/broken"], 3, "{root}/broken/config.json is damaged: it is not JSON"),
    (["generate", "--model", "builtin:gpt5", "x"], 2, "--model: unknown built-in model 'builtin:gpt5'"),
    (["generate", "--model", "nobody/nothing", "x"], 2, "--model: cannot load model 'nobody/nothing'"),
    (["generate", *MODEL, "--policy", "{policy}", "--budget", "0.01", "x"], 2, "--budget: budget 0.01 is unreachable"),
    (["generate", *MODEL, "--policy", "{policy}", "--budget", "1.5", "x"], 2, "--budget: budget 1.5 is out of range"),
    (["generate", *MODEL, "--policy", "{policy}", "--budget", "nan", "x"], 2, "--budget: budget nan is out of range"),
    (["generate", *MODEL, "--policy", "static", "--budget", "half", "x"], 2, "--budget: budget 'half' is not a number"),
    (["generate", *MODEL, "--policy", "static", "--budget", "mlp=x", "x"], 2, "--budget: budget 'mlp=x': 'x' is not"),
    (["generate", *MODEL, "--policy", "static", "--budget", "mlp=2", "x"], 2, "--budget: budget mlp=2 is out of range"),
    (["generate", *MODEL, "--policy", "dense", "--budget", "0.7", "x"], 2, "--budget: 0.7 needs another --policy"),
    (["generate", *MODEL, "--budget", "ms=4", "x"], 2, "--budget: ms=4 needs --timings"),
    (["generate", *MODEL, "--budget", "keep=0.1", "x"], 2, "--budget: budget 0.1 is unreachable: net keeps"),
    (["generate", *MODEL, "--budget", "attention=0.01", "x"], 2, "--budget: budget attention=0.01 is unreachable"),
    (["generate", *MODEL, "--budget", "keep=0.6,mlp=0.7", "x"], 2, "says several things; give keep, speed,"),
    (["generate", *MODEL, "--budget", "speed=1.5", "x"], 2, "--budget: speed=1.5 needs --timings (a file of solm"),
    ([*FITTED, "--budget", "0.01", "x"], 2, "--budget: budget 0.01 is unreachable: at 70 tokens steps take 0."),
    ([*FITTED, "--budget", "speed=9", "x"], 2, "--budget: budget speed=9 is unreachable: at 70 tokens speeds are 1 to"),
    ([*FITTED, "--budget", "speed=0.5", "x"], 2, "speed=0.5 is out of range: a speed must be at least 1"),
    ([*FITTED, "--budget", "ms=0.1", "x"], 2, "--budget: budget ms=0.1 is unreachable: at 70 tokens steps take 6."),
    ([*FITTED, "--budget", "loss=0", "x"], 2, "loss=0 is out of range: a loss must be above 0 nats per token"),
    ([*FITTED, "--budget", "keep=0.1", "x"], 2, "--budget: budget 0.1 is unreachable: net keeps"),
    ([*FITTED, "--budget", "mlp=0.01", "x"], 2, "--budget: budget mlp=0.01 is unreachable: this action space offers"),
    (["chat", *FITTED[1:], "--budget", "speed=9"], 2, "budget speed=9 is unreachable: at 512 tokens speeds are 1 to"),
    (["chat", *MODEL, "--budget", "ms=4"], 2, "--budget: ms=4 needs --timings"),
    (["chat", *MODEL, "--timings", "{root}/none.json"], 2, "--timings: "),
    (["serve", *MODEL, "--slo-floor", "speed=1.5"], 2, "--slo-floor: speed=1.5 needs --timings"),
    (["serve", *MODEL, "--slo-floor", "loss=0.1"], 2, "--slo-floor: loss=0.1 needs a policy with a measured curve"),
    (["serve", *MODEL, "--slo-floor", "mlp=0"], 2, "--slo-floor: budget mlp=0 is out of range"),
    (["serve", *MODEL, "--timings", "{root}/none.json"], 2, "--timings: "),
    (["generate", *MODEL, "--budget", "loss=0.05", "x"], 2, "--budget: loss=0.05 needs a policy with a measured curve"),
    (["generate", *MODEL, "--timings", "{root}/none.json", "x"], 2, "--timings: no file {root}/none.json"),
    (["generate", *MODEL, *OTHERS, "--budget", "0.9", "x"], 2, "--timings: these timings are of other, not of model"),
    (["chat", *MODEL, *OTHERS], 2, "--timings: these timings are of other, not of model; run solm bench"),
    (["chat", *MODEL, *ELSEWHERE, "--backend", "cpu"], 2, "these timings are of torch float32, not of cpu; choose"),
    ([*SPACED, *OTHERS], 2, "--timings: these timings are of other, not of model"),
    (["generate", *MODEL, "--timings", "{root}/bad.json", "x"], 3, "--timings: {root}/bad.json is damaged"),
    (["generate", *MODEL, "--policy", "{root}/nothing", "x"], 2, "--policy: no policy at '{root}/nothing'"),
    (["generate", *MODEL, "--policy", "builtin:nothing", "x"], 2, "--policy: no policy builtin:nothing ships"),
    (["generate", *MODEL, "--policy", "builtin:smollm2-135m", "x"], 2, "--policy: this policy belongs to"),
    (["generate", *MODEL, "--policy", "{root}/damaged", "x"], 3, "--policy: "),
    (["generate", *MODEL, "--space", "joint-9", "x"], 2, "--space: unknown action space 'joint-9'"),
    (["generate", *MODEL, "--max-new-tokens", "0", "x"], 2, "--max-new-tokens: it must be at least 1"),
    (["generate", *MODEL, "--max-new-tokens", "9999", "x"], 2, "--max-new-tokens: 9999 tokens exceed this model's"),
    (["generate", *MODEL, "--temperature", "-1", "x"], 2, "--temperature: it must be at least 0"),
    (["generate", *MODEL, "--temperature", "inf", "x"], 2, "--temperature: inf is not a number that can be used"),
    (["generate", *MODEL, "--top-k", "few", "x"], 2, "--top-k: it must be a whole number"),
    (["generate", *MODEL, "--backend", "native", "x"], 2, "--backend: unknown value 'native'; choose one of torch"),
    (["generate", *MODEL, "--precision", "int3", "x"], 2, "--precision: unknown value 'int3'"),
    (["generate", *MODEL, "--backend", "torch", "--precision", "int8", "x"], 2, "--precision: it needs --backend cpu"),
    (["generate", *MODEL, "--precision", "bfloat16", "--kv-cache-dtype", "int8", "x"], 2, "--kv-cache-dtype: an int8"),
    (["generate", *MODEL, "--dtype", "float8", "x"], 2, "--dtype: unknown dtype 'float8'"),
    (["generate", *MODEL, "--backend", "cpu", "--dtype", "float32", "x"], 2, "--dtype: float32 needs --backend torch"),
    ([*EVAL, "--seed", "-1"], 2, "--seed: it must be at least 0"),
    (["generate", *MODEL, "--threads", "0", "x"], 2, "--threads: 0 is out of range"),
    (["generate", *MODEL, "--out", "{text}/reply.json", "x"], 2, "--out: cannot write {text}/reply.json"),
    (["generate", *MODEL, "--out", "/proc/solm/reply.json", "x"], 2, "--out: cannot write /proc/solm/reply.json"),
    (["generate", *MODEL, "--out", "{root}", "x"], 2, "--out: {root} is a folder; give a file"),
    (EVAL, 2, "--policy: give a policy to evaluate, or --space"),
    (["generate", *MODEL, "--revision", "x", "hi"], 2, "--revision: it goes with a model on the hub"),
    (["policies", "list", "--revision", "x"], 2, "--revision: it goes with a policy on the hub"),
    (["policies", "show", "builtin:smollm2-135m-cpu", "--revision", "x"], 2, "--revision: it goes with a policy on"),
    ([*EVAL, "--policy", "dense"], 2, "--policy: dense is no trained policy"),
    ([*EVAL, "--policy", "{policy}", "--sparsity", "cpu"], 2, "--sparsity: a policy brings its own"),
    ([*EVAL, "--policy", "{policy}", "--space", "joint-27"], 2, "--space: the network has 8 actions"),
    ([*EVAL, *SMALL, "--policy", "{policy}", "--rival", "other"], 2, "--rival: 'other' is not name=folder"),
    ([*EVAL, *SMALL, "--policy", "{policy}", "--rival", "a={policy}"], 2, "--rival: {policy} is not a policy"),
    ([*EVAL, *SMALL, "--policy", "{policy}", "--rival", "uniform=x"], 2, "--rival: the name 'uniform' is taken"),
    ([*EVAL, *SMALL, "--policy", "{policy}", "--rival", "best-of-8=x"], 2, "--rival: the name 'best-of-8' is taken"),
    ([*SPACED, "--budgets", "a"], 2, "--budgets: 'a' is not a list of numbers"),
    ([*SPACED, "--budgets", "0.6,keep=0.7"], 2, "--budgets: '0.6,keep=0.7' mixes net keeps and other shares"),
    ([*SPACED, "--budgets", "mlp=0.6"], 2, "--budgets: 'mlp=0.6' is not a number, keep=0.6, speed=1.3, ms=8 or loss"),
    ([*SPACED, "--budgets", "loss=0.1"], 2, "--budgets: a budget in time needs step timings"),
    ([*TIMED, "--budgets", "0.01"], 2, "--budgets: budget 0.01 is unreachable: at 428 tokens steps take 0."),
    ([*TIMED, "--budgets", "speed=1.2,speed=9"], 2, "--budgets: budget speed=9 is unreachable: at 428 tokens speeds"),
    ([*TIMED, "--budgets", "ms=0.1"], 2, "--budgets: budget ms=0.1 is unreachable: at 428 tokens steps take"),
    ([*TIMED, "--budgets", "loss=5,loss=6"], 2, "--budgets: budget loss=6 comes down to 0."),
    ([*TIMED, "--budgets", "loss=0"], 2, "--budgets: budget loss=0 is out of range"),
    ([*TIMED, "--budgets", "keep=0.1"], 2, "--budgets: budget 0.1 is unreachable: net keeps of this space are"),
    ([*SPACED, "--budgets", "speed=2"], 2, "--budgets: a budget in time needs step timings"),
    ([*SPACED, "--budgets", "1.5"], 2, "--budgets: budget 1.5 is out of range"),
    ([*SPACED, "--budgets", "0.6,0.6"], 2, "--budgets: 0.6 is given twice"),
    ([*SPACED, "--budgets", "0.6,0.01"], 2, "--budgets: budget 0.01 is unreachable"),
    ([*SPACED, "--texts", "0"], 2, "--texts: 0 is out of range: it must be at least 1"),
    ([*SPACED, "--length", "0"], 2, "--length: 0 is out of range: it must be at least 1"),
    ([*SPACED, "--context", "many"], 2, "--context: it must be a whole number"),
    ([*SPACED, "--context", "500"], 2, "--context and --length: 628 tokens exceed this model's context of 512"),
    ([*SPACED, "--sparsity", "native"], 2, "--sparsity: unknown sparsity 'native'"),
    ([*SPACED, "--plot", "{root}/a.pdf"], 2, "--plot: {root}/a.pdf is neither .png nor .svg"),
    ([*SPACED, "--baselines", "quest"], 2, "--baselines: unknown baseline 'quest'"),
    ([*SPACED, "--baselines", "teal"], 2, "--baselines: teal needs text to calibrate"),
    ([*SHORT, "{text}", "--tuning", "{root}/none.txt"], 2, "--tuning: cannot read"),
    ([*SHORT, "{root}/short.txt"], 2, "--data: {root}/short"),
    ([*SHORT, "{root}/bad.jsonl"], 2, "line 2: not JSON"),
    ([*SHORT, "{text},"], 2, "--data: '{text},' has an empty"),
    (["bench", *MODEL, "--context", "0"], 2, "--context: 0 is out of range: it must be at least 1"),
    (["bench", *MODEL, "--context", "4096"], 2, "exceed this model's context of 512"),
    (["serve", *MODEL, "--port", "70000"], 2, "--port: it must be at most 65535"),
    (["serve", *MODEL, "--port", "{port}"], 2, "--port: cannot listen on 127.0.0.1 port {port}"),
    (["serve", *MODEL, "--host", "999.1.1.1"], 2, "--host: "),
    (["serve", *MODEL, "--max-rows", "0"], 2, "--max-rows: 0 is out of range: it must be at least 1"),
    (["serve", *MODEL, "--slo-floor", "0"], 2, "--slo-floor: budget 0 is out of range"),
    (["inspect", "{root}/not.gguf"], 3, "not.gguf is not a GGUF file"),
    (["inspect", "{root}/none.gguf"], 2, "no GGUF file at"),
    (["policies", "drop"], 2, "ACTION: unknown action 'drop'; choose list, show, pull or push"),
    (["policies", "push"], 2, "NAME: give the folder of the policy"),
    (["policies", "push", "{root}/nothing", "nobody/nothing"], 2, "NAME: no policy at '{root}/nothing'"),
    (["policies", "push", "{policy}", "nobody/nothing/at/all"], 2, "REPOSITORY: cannot upload to the hub repository"),
    (["policies", "show", "{policy}", "me/mine"], 2, "REPOSITORY: it goes with push, not show"),
    (["policies", "show"], 2, "NAME: give the policy to show"),
    (["policies", "show", "{root}/nothing"], 2, "NAME: no policy at '{root}/nothing'"),
    (["policies", "show", "{root}/damaged"], 3, "NAME: "),
    (["policies", "list", "{policy}"], 2, "NAME: list takes none; run: solm policies show {policy}"),
    (["policies", "show", "{policy}", "--out", "{root}/copy"], 2, "--out: it goes with pull, not show"),
    (["policies", "pull"], 2, "NAME: give the hub id of the policy to pull"),
    (["policies", "pull", "{policy}"], 2, "NAME: {policy} is here already; pull takes a hub id"),
    (["policies", "pull", "builtin:smollm2-135m"], 2, "NAME: builtin:smollm2-135m is here already"),
    (["policies", "pull", "nobody/nothing"], 2, "NAME: no policy at 'nobody/nothing'"),
    (["policies", "pull", "nobody/nothing/at/all"], 2, "NAME: no policy at 'nobody/nothing/at/all'"),
    (["policies", "pull", "nobody/nothing", "--out", "{policy}"], 2, "--out: {policy} holds a policy already"),
    (["policies", "pull", "nobody/nothing", "--out", "{text}"], 2, "--out: cannot write {text}"),
    (["generate", *BARE, "x"], 2, "--model: model '{root}/bare' has no tokenizer that can be read"),
    (["chat", *BARE], 2, "--model: model '{root}/bare' has no tokenizer that can be read"),
    (["serve", *BARE, "--port", "8765"], 2, "--model: model '{root}/bare' has no tokenizer that can be read"),
    (["bench", *BARE, "--context", "64"], 2, "--model: model '{root}/bare' has no tokenizer that can be read"),
    (["eval", *BARE, "--data", "{text}", "--space", "joint-8", *SMALL], 2, "--model: model '{root}/bare' has no"),
    (["generate", "--model", "{root}/bare.gguf", "x"], 2, "--model: model '{root}/bare.gguf' has no tokenizer"),
    (["generate", *MODEL, "--system", "Be brief.", "x"], 2, "--system: this model has no chat template"),
    (["chat", *MODEL, "--system", "Be brief."], 2, "--system: this model has no chat template"),
    (["generate", *MODEL, "--max-new-tokens", "20", "x" * 500], 2, "PROMPT: a prompt of 500 and 20 new tokens exceed"),
    (["generate", *MODEL, "--top-p", "1.5", "x"], 2, "--top-p: it must be at most 1"),
    (["generate", *MODEL, "--threads", "many", "x"], 2, "--threads: it must be a whole number"),
    (["chat", *MODEL, "--seed", "x"], 2, "--seed: it must be a whole number"),
    (["serve", *MODEL, "--drain-seconds", "-1"], 2, "--drain-seconds: -1.0 is out of range"),
]  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory, byte_tokenizer):
    """What the cases name: a tiny model, a policy for it, texts, damaged files, a port in use."""
    root = tmp_path_factory.mktemp("bad")
    tiny_model("llama", torch.float32).save_pretrained(root / "model")
    byte_tokenizer.save_pretrained(root / "model")
    with solm.attach(tiny_model("llama", torch.float32)) as lm:
        config = PolicyConfig(
            base=lm.identity, space=ActionSpace.preset("joint-8"), sparsity=SparsityConfig(),
            network=NetworkConfig(base_hidden=64, actions=8, width=16, heads=2),
        )  # fmt: skip
        TrainedPolicy(config).save_pretrained(root / "policy")
        TrainedPolicy(config).save_pretrained(root / "damaged")
        fitted = under_values(lm, SparsityConfig.preset("cpu")).trained
        fitted.curve = made_curve(fitted.config.sparsity, lm.shapes)
        fitted.save_pretrained(root / "fitted")
        others = made_timings(fitted.config.sparsity, lm.shapes, model="other")
        (root / "others.json").write_text(others.model_dump_json())
        elsewhere = made_timings(fitted.config.sparsity, lm.shapes, model="model", backend="torch float32")
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
    untold = GGUFWriter(root / "bare.gguf", "llama")
    for key, value in (("context_length", 512), ("embedding_length", 64), ("block_count", 2), ("vocab_size", 259),
                       ("feed_forward_length", 96), ("attention.head_count", 4)):  # fmt: skip
        untold.add_uint32(f"llama.{key}", value)
    untold.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    untold.write_header_to_file()
    untold.write_kv_data_to_file()
    untold.write_tensors_to_file()
    untold.close()
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
    monkeypatch.setattr("solm.backends.torch.names.dequantised", loaded)
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


def test_options_name_the_policies_that_need_no_training():
    from solm.cli.options import DECIDERS
    from solm.runtime.controlled import UNTRAINED

    assert set(DECIDERS) == set(UNTRAINED)


def test_a_failed_command_leaves_the_files_it_would_have_written(places, tmp_path, monkeypatch, capsys):
    mine = tmp_path / "mine.json"
    mine.write_text("mine")
    for more in (["--budgets", "a"], ["--baselines", "quest"], ["--texts", "0"]):
        words = ["eval", "--model", places.model, "--space", "joint-8", "--data", places.text, "--out", mine, *more]
        monkeypatch.setattr(sys, "argv", ["solm", *map(str, words)])
        with pytest.raises(SystemExit):
            main()
        assert mine.read_text() == "mine"
    assert not list(Path(tmp_path).glob(".*.lock"))
