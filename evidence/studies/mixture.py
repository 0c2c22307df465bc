"""A small mixture of experts, trained for an hour: what it loses where tokens visit fewer of their experts.

    python evidence/studies/mixture.py --model FOLDER --text TEXTS --minutes 60 --data FOLDER/held-out.txt
    solm fit FOLDER --data FOLDER/fit.txt --minutes 10 --out RUN
    python evidence/studies/mixture.py --model FOLDER --data FOLDER/held-out.txt --policy RUN/policy --out mixture.json

Where FOLDER holds no model yet, one is trained on TEXTS and saved there with texts that it was not trained on. Then
texts are scored, where in all layers tokens visit experts until these hold enough of the router's probability, or
always the same number of experts, or all experts with fewer channels. A policy is compared with the first of these.
All that is compared reads as many bytes.
"""

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

from evidence.record import Record, record
from evidence.studies.common import Numbers, TextOptions, kept, main, progress
from solm.core.actions import FULL_BITS
from solm.core.cost import realised_mlp, relative_bytes
from solm.core.files import read_json, write_json, write_text
from solm.core.sparsity import SparsityConfig
from solm.evaluation.result import paired_difference
from solm.evaluation.texts import documents, stream_of, token_stream
from solm.runtime.language_model import LanguageModel

_SIZES = {
    "vocab_size": 2048, "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2,
    "head_dim": 32, "moe_intermediate_size": 192, "num_experts": 32, "num_experts_per_tok": 4, "norm_topk_prob": True,
    "max_position_embeddings": 1024, "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
_LENGTH, _BATCH, _RATE, _WARM, _BALANCE = 256, 8, 3e-3, 50, 0.01
_EVERY, _TOGETHER = 20, 8
"""Of so many documents one is held out, and texts that are scored together."""
TRAINING = "training.json"


class Options(TextOptions):
    model: str = Field(description="Folder of the model, made if need be.")
    text: str | None = Field(None, exclude=True, description="What to train on: a folder of JSON lines or texts.")
    minutes: float = Field(60, gt=0, exclude=True, description="Minutes of training.")
    shares: Numbers = Field((0.25, 0.4, 0.5, 0.6, 0.75, 0.9), description="Of the experts that tokens visit.")
    budgets: Numbers = Field((0.7, 0.8, 0.9), description="Of the policy: shares of the dense step's bytes.")


class Arm(NamedTuple):
    """How steps are carried out, and the keep rate of their MLP, or what the policy aims at [1, axes]."""

    rules: SparsityConfig
    keep: float = 1.0
    target: np.ndarray | None = None


def train(folder: Path, text: str, minutes: float, seed: int) -> None:
    """Train a mixture for some minutes, and save it, its tokenizer, texts that it has not seen and some that it has."""
    torch.manual_seed(seed)
    texts = documents(text)
    held_out, known = texts[_EVERY - 1 :: _EVERY], [each for at, each in enumerate(texts, 1) if at % _EVERY]
    bytes_alone = Tokenizer(models.BPE())
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    merges = trainers.BpeTrainer(vocab_size=_SIZES["vocab_size"], special_tokens=["</s>"], initial_alphabet=alphabet)
    bytes_alone.train_from_iterator(known[::8], merges)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_alone, eos_token="</s>", pad_token="</s>")
    tokens = stream_of(known, tokenizer, text).tokens.long()
    config = Qwen3MoeConfig(**_SIZES, output_router_logits=True, router_aux_loss_coef=_BALANCE)
    config._experts_implementation = "grouped_mm"  # one product for all experts of a layer
    model = Qwen3MoeForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    begun, step = time.monotonic(), 0
    while (done := (time.monotonic() - begun) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min(1, (step + 1) / _WARM) * (0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)
        starts = torch.randint(0, len(tokens) - _LENGTH, (_BATCH,))
        batch = torch.stack([tokens[start : start + _LENGTH] for start in starts])
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 20 == 0:
            progress(f"training, loss {float(loss.detach()):.2f}, percent", round(100 * done), 100)
    model.config.output_router_logits = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_text(folder / "held-out.txt", "\n\n".join(held_out))
    write_text(folder / "fit.txt", "\n\n".join(known[::_EVERY]))
    about = {"minutes": minutes, "weights": model.num_parameters(), "tokens": step * _BATCH * _LENGTH}
    write_json(folder / TRAINING, about | {"of": len(tokens), **_SIZES})


def run(options: Options, partial: Path | None) -> Record:
    """Results: `training`, `nats` of dense steps, and by arm what it reads and its nats per token above dense ones, and
    above those of the same bytes that visit experts by their probability, with 95 % intervals over texts."""
    folder = Path(options.model)
    if options.text is not None and not (folder / TRAINING).exists():
        train(folder, options.text, options.minutes, options.seed)
    lm = options.load()
    windows, fingerprints = options.windows(lm)
    settings = options.model_dump(mode="json") | {"data_fingerprint": fingerprints}
    arms, parts, rows = arms_of(lm, folder, options), kept(partial, lm, settings), dict[str, list[list[float]]]()
    for index, batch in enumerate(windows.split(_TOGETHER)):
        progress("texts", index * _TOGETHER, len(windows))
        for name, found in parts.get(str(index), lambda batch=batch: score(lm, batch, arms, options)).items():  # type: ignore[misc]
            rows[name] = rows.get(name, []) + found
    tables, told = {name: np.array(some) for name, some in rows.items()}, dict[str, dict[str, Any]]()
    for name, table in tables.items():
        told[name] = dict(zip(("bytes", "attention", "mlp"), table.mean(0)[1:].tolist(), strict=True))
        for kind, other in (("dense", "dense"), ("probability", f"probability {name.partition(' ')[2]}")):
            if other in tables and other != name:
                told[name][f"minus_{kind}"] = paired_difference(table[:, 0], tables[other][:, 0]).model_dump()
    nats = float(tables["dense"][:, 0].mean())
    return record("mixture", settings, {"training": read_json(folder / TRAINING), "nats": nats, "arms": told})


def arms_of(lm: LanguageModel, folder: Path, options: Options) -> dict[str, Arm]:
    """All arms by name: a kind, and a share of the experts, or ``budget`` and a share of the bytes."""
    assert lm.tokenizer is not None
    middle = options.context + options.length // 2
    texts = token_stream(str(folder / "fit.txt"), lm.tokenizer)
    windows = texts.spaced(16, options.context, torch.Generator().manual_seed(options.seed))
    number, channels = SparsityConfig.preset("experts"), SparsityConfig.preset("cpu")
    probability = number.changed(thresholds=lm.backend.channel_thresholds(windows, 1))

    def reading(rules: SparsityConfig, share: float) -> Arm:
        """Steps that read all pages and this share of the bytes."""
        rates = np.arange(1, 1001) / 1000
        mlp = realised_mlp(rates, rules, lm.shapes)[0]
        read = relative_bytes(np.stack([mlp**0, mlp, mlp**0], -1), middle, lm.shapes, rules)
        return Arm(rules, float(rates[abs(read - share).argmin()]))

    found = {"dense": Arm(number)}
    for share in options.shares:
        found[f"probability {share:g}"] = Arm(probability, share)
        if (share * lm.shapes.experts_used).is_integer():
            found[f"number {share:g}"] = Arm(number, share)
        read = float(relative_bytes(np.array([1.0, share, 1.0]), middle, lm.shapes, number))
        found[f"channels {share:g}"] = reading(channels, read)
    for budget in options.budgets if lm.trained else ():
        shares = lm.budget(budget, middle).shares
        found[f"policy budget {budget:g}"] = Arm(lm.sparsity, target=np.array([shares]))
        found[f"probability budget {budget:g}"] = reading(probability, budget)
    return found


def score(
    lm: LanguageModel, windows: torch.Tensor, arms: dict[str, Arm], options: Options
) -> dict[str, list[list[float]]]:
    """By arm, of every text, means over tokens: nats, bytes, and the shares of attention and MLP."""
    session, steps, found = lm.session(capacity=windows.shape[1]), options.length, {}
    session.prefill(windows[:, : options.context])
    for name, (rules, keep, target) in arms.items():
        fork, weights = session.fork(1, steps + rules.page_size, rules), 0
        actions = torch.tensor([1.0, keep, FULL_BITS], dtype=torch.float64).expand(len(windows), steps, 3)
        if target is not None:
            fork.control(lm.policy(), target.repeat(len(windows), 0), steps)
            weights = lm.overhead(lm.policy())
        scored = fork.score(windows[:, options.context :], actions if target is None else None)
        shares = np.asarray(scored.realised).mean(1)
        read = relative_bytes(shares, options.context + steps // 2, lm.shapes, rules, weights)
        nats = -scored.log_probabilities.double().mean(1).numpy()
        found[name] = np.stack([nats, read, shares[:, 0], shares[:, 1]], -1).tolist()
    return found


def lines(found: Record) -> list[str]:
    shown = "{value:+.4f} [{low:+.4f}, {high:+.4f}] above {kind}"
    return [
        f"{name:24} {told['mlp']:.3f} of the MLP, {told['bytes']:.3f} of the bytes: "
        + ", ".join(shown.format(kind=key.partition("_")[2], **told[key]) for key in told if key.startswith("minus"))
        for name, told in found.results["arms"].items()
    ]


if __name__ == "__main__":
    main(Options, run, lines, __doc__)
