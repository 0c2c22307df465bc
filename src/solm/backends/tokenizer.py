"""A model's tokenizer on the `tokenizers` package alone; transformers is imported for what only it can do."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solm.backends.gguf_header import read_header
from solm.backends.names import folder_of, folder_or_hub_id, gguf_of, made_folder, not_loadable
from solm.backends.quiet import quiet
from solm.core.cache_folder import cache_folder
from solm.core.errors import SolmError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    AnyTokenizer = PreTrainedTokenizerBase | "Tokenizer"

_TOKENS, _FACTS = "tokenizer.json", "solm.json"
_FORMAT = 2
_ERRORS = (OSError, ValueError, KeyError, ImportError)
"""What transformers raises where there is nothing that it can read."""
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")


@dataclass(frozen=True)
class _Facts:
    """What of a tokenizer is not in its tokenizer.json."""

    chat_template: str | None
    special_tokens: dict[str, str]
    all_special_ids: list[int]


class Tokenizer:
    """The tokenizer kept in `folder`: texts to tokens and back, and conversations to texts, as transformers' does it.

    Everything else that transformers' tokenizers can do is done by one, which `full` makes when it is asked for first.
    """

    def __init__(self, folder: Path, full: "Callable[[], PreTrainedTokenizerBase]"):
        from tokenizers import Tokenizer as Backend

        self._facts = _Facts(**json.loads((folder / _FACTS).read_text()))
        self._backend = Backend.from_file(str(folder / _TOKENS))
        self._backend.no_padding()
        self._backend.no_truncation()
        self._make_full = full
        self._full: PreTrainedTokenizerBase | None = None

    @property
    def full(self) -> "PreTrainedTokenizerBase":
        """transformers' tokenizer."""
        if self._full is None:
            self._full = self._make_full()
        return self._full

    @property
    def chat_template(self) -> str | None:
        return self._facts.chat_template

    @property
    def all_special_ids(self) -> list[int]:
        """Tokens that are no text."""
        return self._facts.all_special_ids

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a text."""
        return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        """The text of tokens [C], a list, an array or a tensor."""
        listed = ids.tolist() if hasattr(ids, "tolist") else ids
        return str(self._backend.decode([listed] if isinstance(listed, int) else listed, skip_special_tokens))

    def apply_chat_template(
        self, conversation: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False, **options: Any
    ) -> Any:
        """The text of a conversation with ``tokenize=False`` as the only option; anything else is transformers'."""
        plain = all(type(value) is str for message in conversation for value in message.values())
        if self.chat_template is None or not plain or options != {"tokenize": False}:
            return self.full.apply_chat_template(
                conversation,  # type: ignore[arg-type]
                add_generation_prompt=add_generation_prompt,
                **options,
            )
        from solm.backends.chat_template import render

        return render(self.chat_template, conversation, self._facts.special_tokens, add_generation_prompt)

    def __call__(self, *given: Any, **options: Any) -> Any:
        """As transformers' tokenizers are called."""
        return self.full(*given, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # of a copy that is not set up yet
            raise AttributeError(name)
        return getattr(self.full, name)

    def __len__(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)


def model_tokenizer(name: str, trust_remote_code: bool = False, revision: str | None = None) -> Any:
    """The tokenizer that comes with a model: a `Tokenizer`, or transformers' own where only that can be used.

    What transformers makes of a model's files is kept in the cache folder, and read from there the next time. Raises
    `SolmError` for a model without a tokenizer, or where there is none.
    """
    has_chat_template(name)

    def full() -> "PreTrainedTokenizerBase":
        return transformers_tokenizer(name, trust_remote_code, revision)

    if trust_remote_code:
        return full()
    gguf = gguf_of(name)
    files = [gguf] if gguf is not None else _files(folder_of(name, revision))
    folder = cache_folder() / f"tokenizer-{_stamp(files)}"
    if not folder.is_dir():
        made = full()
        facts = _facts_of(made)
        if facts is None:
            return made
        try:
            made_folder(folder, lambda work: _write(work, made, facts))
        except OSError:
            return made
    try:
        return Tokenizer(folder, _from(folder) if gguf is not None else full)
    except Exception:  # a damaged file, for which the package has no error of its own
        return full()


def transformers_tokenizer(
    name: str, trust_remote_code: bool = False, revision: str | None = None
) -> "PreTrainedTokenizerBase":
    """transformers' tokenizer of a model; raises `SolmError` for a model without one, or where there is none."""
    from transformers import AutoConfig, AutoTokenizer

    gguf = gguf_of(name)
    try:
        with quiet():
            if gguf is not None:
                return AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            source = folder_or_hub_id(name)
            return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, revision=revision)
    except _ERRORS as error:
        try:  # no such model at all: that is what to say
            if gguf is None:
                AutoConfig.from_pretrained(
                    folder_or_hub_id(name), trust_remote_code=trust_remote_code, revision=revision or "main"
                )
        except _ERRORS as missing:
            raise not_loadable(name, missing) from missing
        reason = str(error).strip().split("\n")[0].rstrip(":. ")
        raise SolmError(f"model {name!r} has no tokenizer that can be read ({reason})") from error


def has_chat_template(name: str) -> bool | None:
    """Whether a GGUF file's tokenizer has a chat template, by the file's header; None for other models.

    Raises `SolmError` for a file without a tokenizer.
    """
    gguf = gguf_of(name)
    if gguf is None:
        return None
    known = read_header(gguf).metadata
    if "tokenizer.ggml.tokens" not in known:
        raise SolmError(f"model {name!r} has no tokenizer: the file has no field tokenizer.ggml.tokens")
    return "tokenizer.chat_template" in known


def _from(folder: Path) -> "Callable[[], PreTrainedTokenizerBase]":
    """transformers' tokenizer out of the folder in which it was kept; its reader of GGUF files takes seconds."""

    def load() -> "PreTrainedTokenizerBase":
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder)

    return load


def _files(folder: Path) -> list[Path]:
    """The files of a model's folder, without its weights."""
    return [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix not in _WEIGHTS]


def _stamp(files: Iterable[Path]) -> str:
    """Differs for other files, other versions of them, and another transformers."""
    parts = [str(_FORMAT), version("transformers")]
    for path in files:
        status = path.stat()
        parts.append(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _facts_of(tokenizer: "PreTrainedTokenizerBase") -> _Facts | None:
    """What is kept of a tokenizer beside its tokenizer.json; None where `Tokenizer` could not stand in for it."""
    backend, template = getattr(tokenizer, "backend_tokenizer", None), tokenizer.chat_template
    cleans = tokenizer.clean_up_tokenization_spaces and type(getattr(backend, "model", None)).__name__ != "BPE"
    if backend is None or cleans or not isinstance(template, str | None):
        return None
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return _Facts(template, special, list(tokenizer.all_special_ids))


def _write(folder: Path, tokenizer: "PreTrainedTokenizerBase", facts: _Facts) -> None:
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.save(str(folder / _TOKENS))  # type: ignore[attr-defined]
    (folder / _FACTS).write_text(json.dumps(vars(facts)))
