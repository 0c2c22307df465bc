"""A model's tokenizer on the `tokenizers` package alone; transformers is imported for what only it can do."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf.vocab import bytes_to_unicode

from solm.backends.gguf_header import GgufHeader, read_header
from solm.backends.gguf_tokenizer import byte_level_tokenizer
from solm.backends.names import folder_of, folder_or_hub_id, gguf_of, made_folder, not_loadable, quiet
from solm.core.errors import SolmError
from solm.core.files import cache_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerBase

_TOKENS, _FACTS = "tokenizer.json", "solm.json"
_FORMAT = 4
_BYTES = {letter: byte for byte, letter in bytes_to_unicode().items()}
"""The byte that every letter of a byte-level vocabulary stands for."""
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")


@dataclass(frozen=True)
class _Facts:
    """What of a tokenizer is not in its tokenizer.json."""

    chat_template: str | None
    special_tokens: dict[str, str]
    all_special_ids: list[int]
    settings: dict[str, Any] = field(default_factory=dict)


class Tokenizer:
    """Texts to tokens and back, and conversations to texts, as transformers' tokenizers do it.

    Everything else that those can do is done by one, which is made of the same parts when it is asked for first.
    """

    def __init__(self, backend: "Backend", facts: _Facts):
        backend.no_padding()
        backend.no_truncation()
        self._backend, self._facts = backend, facts
        self._full: PreTrainedTokenizerBase | None = None

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer that `save` wrote to `folder`."""
        from tokenizers import Tokenizer as Backend

        facts = _Facts(**json.loads((folder / _FACTS).read_text()))
        return cls(Backend.from_file(str(folder / _TOKENS)), facts)

    def save(self, folder: Path) -> None:
        """Write it to `folder`. Raises `OSError` where that cannot be done; the package's own `save` has a bare
        `Exception` for it."""
        (folder / _TOKENS).write_text(self._backend.to_str(pretty=True), encoding="utf-8")
        (folder / _FACTS).write_text(json.dumps(vars(self._facts)))

    @property
    def full(self) -> "PreTrainedTokenizerBase":
        """transformers' tokenizer."""
        if self._full is None:
            from transformers import PreTrainedTokenizerFast

            self._full = PreTrainedTokenizerFast(
                tokenizer_object=self._backend, chat_template=self.chat_template, clean_up_tokenization_spaces=False,
                **self._facts.special_tokens, **self._facts.settings,
            )  # fmt: skip
        return self._full

    @property
    def backend_tokenizer(self) -> "Backend":
        """That of the tokenizers package."""
        return self._backend

    @property
    def chat_template(self) -> str | None:
        return self._facts.chat_template

    @chat_template.setter
    def chat_template(self, template: str) -> None:
        self._facts, self._full = replace(self._facts, chat_template=template), None

    @property
    def all_special_ids(self) -> list[int]:
        """Tokens that are no text."""
        return self._facts.all_special_ids

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a text; None where there is none."""
        token = self._facts.special_tokens.get("eos_token")
        return None if token is None else self._backend.token_to_id(token)

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
        """The text of a conversation with ``tokenize=False``, ``tools`` where there are any, and variables that the
        template reads as the only options; anything else is transformers'."""
        from solm.backends.chat_template import options_of, render

        tools, known = options.pop("tools", None), options_of(self.chat_template or "")
        told = {name: options.pop(name) for name in list(options) if name in known}
        plain = all(
            type(value) is str or name == "tool_calls" for message in conversation for name, value in message.items()
        )
        if self.chat_template is None or not plain or options != {"tokenize": False}:
            options |= told | ({} if tools is None else {"tools": tools})
            return self.full.apply_chat_template(
                conversation,  # type: ignore[arg-type]
                add_generation_prompt=add_generation_prompt,
                **options,
            )
        return render(self.chat_template, conversation, self._facts.special_tokens, add_generation_prompt, tools, told)

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

    What is made of a model's files is kept in the cache folder, and read from there the next time. Raises `SolmError`
    for a model without a tokenizer, or where there is none.
    """
    gguf = gguf_of(name)
    header = None if gguf is None else read_header(gguf)
    if header is not None and "tokenizer.ggml.tokens" not in header.metadata:
        raise SolmError(f"model {name!r} has no tokenizer: the file has no field tokenizer.ggml.tokens")
    if trust_remote_code:
        return transformers_tokenizer(name, trust_remote_code, revision)
    folder = cache_folder() / f"tokenizer-{_stamp(_files(folder_of(name, revision)) if gguf is None else [gguf])}"
    if folder.is_dir():
        try:
            return Tokenizer.load(folder)
        except Exception:  # a damaged file, for which the package has no error of its own
            return transformers_tokenizer(name, trust_remote_code, revision)
    made = None if header is None else _from_header(header)
    if made is None:
        full = transformers_tokenizer(name, trust_remote_code, revision)
        made = _without_transformers(full)
        if made is None:
            return full
    with suppress(OSError):
        made_folder(folder, made.save)
    return made


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
    except Exception as error:  # of a damaged file it raises anything
        try:  # no such model at all: that is what to say
            if gguf is None:
                AutoConfig.from_pretrained(
                    folder_or_hub_id(name), trust_remote_code=trust_remote_code, revision=revision or "main"
                )
        except Exception as missing:
            raise not_loadable(name, missing) from missing
        reason = str(error).strip().split("\n")[0].rstrip(":. ")
        raise SolmError(f"model {name!r} has no tokenizer that can be read ({reason})") from error


def _from_header(header: GgufHeader) -> Tokenizer | None:
    """The tokenizer of a GGUF file without transformers; None where only that can read it."""
    template = header.metadata.get("tokenizer.chat_template")
    byte_level = byte_level_tokenizer(header)
    if byte_level is None or not isinstance(template, str | None):
        return None
    backend, special = byte_level
    numbers = [backend.token_to_id(token) for token in dict.fromkeys(special.values())]
    ids = [number for number in numbers if number is not None]
    return Tokenizer(backend, _Facts(template, special, ids))


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


def token_bytes(tokenizer: Any, token: int, text: str) -> list[int] | None:
    """The bytes of a token whose text is `text`. Of a part of a character, which has no text, those that the vocabulary
    names, by the alphabet of byte-level BPE or as ``<0x0A>``; None where it names none."""
    if "\ufffd" not in text:
        return list(text.encode())
    name = str(tokenizer.backend_tokenizer.id_to_token(token))
    if re.fullmatch("<0x[0-9A-F]{2}>", name):
        return [int(name[3:5], 16)]
    return [_BYTES[letter] for letter in name] if all(letter in _BYTES for letter in name) else None


def _without_transformers(tokenizer: "PreTrainedTokenizerBase") -> Tokenizer | None:
    """The same tokenizer on the `tokenizers` package alone; None where that could not stand in for it."""
    backend, template = getattr(tokenizer, "backend_tokenizer", None), tokenizer.chat_template
    cleans = tokenizer.clean_up_tokenization_spaces and type(getattr(backend, "model", None)).__name__ != "BPE"
    if backend is None or cleans or not isinstance(template, str | None):
        return None
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    settings = {name: getattr(tokenizer, name) for name in ("model_max_length", "padding_side", "truncation_side")}
    return Tokenizer(backend, _Facts(template, special, list(tokenizer.all_special_ids), settings))
