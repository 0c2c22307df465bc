"""The tokenizer of a GGUF file with a byte-level vocabulary (``gpt2``), made of its tokens and merges.

It is what transformers makes of the same file, in a tenth of the time; a test compares both. But transformers adds
GPT-2's ``<|endoftext|>`` to a vocabulary that lacks it, as a token that the model does not have.
"""

from typing import TYPE_CHECKING, Any

from gguf import TokenType
from gguf.vocab import bytes_to_unicode

from solm.backends.gguf_header import GgufHeader, read_arrays
from solm.core.errors import damaged

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")
_CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]%s[\p{Ll}\p{Lm}\p{Lo}\p{M}]%s(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
_GPT_4O = (
    _CASED % ("*", "+") + _CASED % ("+", "*") + (r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
)
SPLITS: dict[str, str | None] = {
    "qwen2": _QWEN2, "deepseek-r1-qwen": _QWEN2, "llama-bpe": _LLAMA3,
    "glm4": _LLAMA3, "chatglm-bpe": _LLAMA3, "gpt-4o": _GPT_4O,
    "smollm": None, "gpt-2": None, "olmo": None, "default": None,
}  # fmt: skip
"""By what a file says in ``tokenizer.ggml.pre``, how texts are cut before merges apply; None: as GPT-2 cuts them."""
_TOKENS, _KINDS, _MERGES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges"))
_MARKERS = (TokenType.CONTROL, TokenType.USER_DEFINED)
_END_OF_TEXT = "<|endoftext|>"
_NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
"""transformers' names of special tokens, and what GGUF files call them."""


def byte_level_tokenizer(header: GgufHeader) -> "tuple[Tokenizer, dict[str, str]] | None":
    """The tokenizer of a file, and its special tokens by transformers' names; None for a vocabulary of another kind.

    Raises `DamagedFileError` for a damaged file.
    """
    metadata = header.metadata
    if metadata.get("tokenizer.ggml.model") != "gpt2" or str(metadata.get("tokenizer.ggml.pre")) not in SPLITS:
        return None
    arrays = read_arrays(header.path, frozenset((_TOKENS, _KINDS, _MERGES)))
    tokens, merges = arrays.get(_TOKENS), arrays.get(_MERGES)
    kinds = arrays.get(_KINDS, [])
    for name in (_TOKENS, _MERGES):
        if not all(isinstance(text, str) for text in arrays.get(name, [])):
            raise damaged(header.path, name, "must be texts")
    if not tokens or merges is None or any(merge.count(" ") != 1 for merge in merges):
        return None
    numbers = {name: metadata.get(f"tokenizer.ggml.{theirs}_token_id") for name, theirs in _NAMED.items()}
    special = {
        name: tokens[number] for name, number in numbers.items() if type(number) is int and 0 <= number < len(tokens)
    }
    try:
        return _made(tokens, merges, kinds, special, metadata), special
    except Exception:  # tokenizers has no error of its own for merges of tokens that are not in the vocabulary
        return None


def _made(
    tokens: list[str], merges: list[str], kinds: list[int], special: dict[str, str], metadata: dict[str, Any]
) -> "Tokenizer":
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    spelling = bytes_to_unicode()
    alphabet = set(spelling.values())
    # Some files have tokens that are not written in the letters that stand for bytes. Markers are texts as they are.
    markers = {token for token, kind in zip(tokens, kinds, strict=False) if kind in _MARKERS}
    spelled = [
        token if token in markers or alphabet.issuperset(token) else "".join(spelling[byte] for byte in token.encode())
        for token in tokens
    ]
    vocabulary = {token: number for number, token in enumerate(spelled)}
    made = Tokenizer(
        models.BPE(
            vocabulary, [(one, other) for one, other in (merge.split(" ") for merge in merges)],
            continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False,
        )
    )  # fmt: skip
    split = SPLITS[str(metadata["tokenizer.ggml.pre"])]
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split is not None:
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    made.decoder = decoders.ByteLevel()
    control, own = ([t for t, kind in zip(tokens, kinds, strict=False) if kind == one] for one in _MARKERS)
    named = [token for token in (*special.values(), _END_OF_TEXT) if token in vocabulary and token not in markers]
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    made.add_tokens([AddedToken(token, normalized=False, special=False) for token in own])
    made.add_special_tokens([AddedToken(token, special=True) for token in named])
    first, last = (
        special.get(f"{end}_token") if metadata.get(f"tokenizer.ggml.add_{end}_token") else None
        for end in ("bos", "eos")
    )
    single = [token for token in (first, "$A", last) if token]
    made.post_processor = processors.TemplateProcessing(
        single=single,
        pair=[*single, *(f"{'$B' if part == '$A' else part}:1" for part in single)],
        special_tokens=[(token, made.token_to_id(token)) for token in dict.fromkeys((first, last)) if token],
    )
    return made
