"""Where training text comes from, and what a policy's card says about it."""

import json
from pathlib import Path
from typing import Any

import torch

from solm.core.errors import DataError
from solm.core.files import write_text
from solm.core.provenance import command_line, commit, plain_name, plain_names, versions
from solm.data.text import documents
from solm.data.windows import TokenStream, stream_of
from solm.paper.config import RunConfig
from solm.paper.ranks import Ranks
from solm.paper.self_text import sample_texts
from solm.runtime.language_model import LanguageModel

Record = dict[str, Any]


def training_streams(lm: LanguageModel, config: RunConfig, out: Path, ranks: Ranks) -> list[TokenStream]:
    """The tokens of every source. Self-sampled texts are kept in the folder `out`. The first process samples them, or
    all processes together where they share one model."""
    assert lm.tokenizer is not None
    for source in config.data:
        if source.split(":")[0] == "self" and (ranks.first or ranks.lockstep):
            self_texts(lm, config, out, source)
    ranks.wait()
    streams = []
    for source in config.data:
        sampled = source.split(":")[0] == "self"
        texts = self_texts(lm, config, out, source) if sampled else documents(source)
        streams.append(stream_of(texts, lm.tokenizer, source))
    return streams


def draw_halves(streams: list[TokenStream], texts: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """As `draw_windows`, where the second half of the texts is from the second half of every source: the halves share
    no token, where sources have room for that."""
    parts = [stream.parted(0.5, length) for stream in streams]
    first = draw_windows([part[0] for part in parts], texts // 2, length, generator)
    return torch.cat([first, draw_windows([part[1] for part in parts], texts - texts // 2, length, generator)])


def draw_windows(streams: list[TokenStream], count: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """`count` windows [count, length], every one from a source drawn uniformly."""
    picks = torch.randint(len(streams), (count,), generator=generator).tolist()
    return torch.cat([streams[pick].random(1, length, generator) for pick in picks])


def self_texts(lm: LanguageModel, config: RunConfig, out: Path, source: str) -> list[str]:
    """The texts of ``self:N``: N dense samples that begin like Python's documentation does."""
    count = source.partition(":")[2] or "32"
    if not count.isdigit() or int(count) < 1:
        raise DataError(f"source {source!r}: expected self:N with N at least 1")
    path = out / f"self-{count}.jsonl"
    if not path.exists():
        assert lm.tokenizer is not None
        length = config.context + config.length + 1
        starts = stream_of(documents("pydoc:train"), lm.tokenizer, "pydoc:train").random(
            int(count), 8, torch.Generator().manual_seed(config.seed)
        )
        texts = sample_texts(lm, starts, length, config.seed)
        write_text(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))
    return documents(str(path))


def provenance(config: RunConfig, streams: list[TokenStream]) -> Record:
    """What a policy's card says about its training. `made` may differ between runs that give the same policy."""
    names = {"model": plain_name(config.model), "data": plain_names(config.data)}
    return {
        "config": config.model_dump(mode="json", exclude={"space", "sparsity"}) | names,
        "data_fingerprint": "-".join(stream.fingerprint for stream in streams),
        "versions": versions(),
        "made": {"command": command_line(), "commit": commit()},
    }
