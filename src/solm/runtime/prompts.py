"""What a model can be asked with: text, a conversation, token ids, and several of them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from solm.backends.chat_template import options_of
from solm.core.arrays import Array, as_numpy, is_tensor
from solm.core.errors import DataError, SolmError, argument, check_unicode

if TYPE_CHECKING:
    import torch

Message = dict[str, Any]
"""One message of a conversation, with the keys ``role`` and ``content``, both texts."""
Prompt = Union[str, list[Message], list[int], np.ndarray, "torch.Tensor"]
Prompts = Prompt | list[str] | list[list[Message]] | list[list[int]]


def token_rows(
    tokenizer: Any,
    prompt: Prompts | None,
    input_ids: Array | None = None,
    attention_mask: Array | None = None,
    told: Mapping[str, Any] | None = None,
) -> tuple[list[np.ndarray], bool]:
    """The token ids [1, C] of every prompt, and whether there are several: a list of prompts or ids [N, C] of N > 1.

    Token ids of one prompt are a list, an array or a tensor [C] of whole numbers.
    input_ids [N, C] int64 are taken in place of a prompt. attention_mask [N, C]: the tokens that count, 1 or true;
    all without. told: as `chat_tokens` has it. Raises `DataError` for a prompt that is empty, malformed or not valid
    Unicode, `SolmError` for text without a tokenizer.
    """
    if (prompt is None) == (input_ids is None):
        if prompt is None:
            raise DataError("nothing to generate from: give a prompt or input_ids")
        raise DataError("prompt and input_ids say the same thing twice; give one of them")
    asked = input_ids if prompt is None else prompt
    if are_ids(asked):
        ids = np.atleast_2d(np.asarray(asked) if isinstance(asked, list | tuple) else as_numpy(asked))
        rows = _counted(ids, None if attention_mask is None else as_numpy(attention_mask))
        return rows, len(rows) > 1
    if attention_mask is not None:
        raise DataError("an attention_mask goes with token ids, not with text")
    if isinstance(asked, str) or (isinstance(asked, Sequence) and asked and isinstance(asked[0], Mapping)):
        return [encode(tokenizer, asked, told=told)], False  # type: ignore[arg-type]
    if not isinstance(asked, list | tuple):
        raise DataError(f"a prompt must be text, a list of messages or token ids, got {type(asked).__name__}")
    if not asked:
        raise DataError("there are no prompts: the list is empty")
    rows = []
    for number, one in enumerate(asked):
        try:
            rows.append(token_rows(None, one)[0][0] if are_ids(one) else encode(tokenizer, one, told=told))  # type: ignore[arg-type]
        except SolmError as error:
            raise type(error)(f"prompt {number}: {error}") from error
    return rows, True


def encode(
    tokenizer: Any, prompt: str | list[Message], system: str | None = None, told: Mapping[str, Any] | None = None
) -> np.ndarray:
    """Token ids [1, C] int64 of a text or a conversation, through the chat template where the tokenizer has one.

    system: a message that comes first. told: as `chat_tokens` has it. Raises as `token_rows` does, and `SolmError` for
    a conversation or a system message where there is no chat template.
    """
    messages = _conversation(prompt, system)
    if tokenizer is None:
        raise SolmError("text needs a tokenizer; pass one to attach or load, or pass token ids")
    check_system(tokenizer, system)
    if not tokenizer.chat_template:
        check_told(tokenizer, told)
        if not isinstance(prompt, str):
            raise SolmError("this model has no chat template, so a list of messages has no form; give one text")
        return np.array([tokenizer.encode(prompt)], dtype=np.int64)
    return np.array([chat_tokens(tokenizer, messages, told=told)], dtype=np.int64)


def check_system(tokenizer: Any, system: str | None) -> None:
    """Raises `SolmError` for a system message that is not valid Unicode, or that the chat template has no place for."""
    if system is not None:
        with argument("system"):
            check_unicode(system, "the message")
            if not tokenizer.chat_template:
                raise SolmError(
                    "this model has no chat template, so a system message has no place; put it into the prompt"
                )


class TemplateVariableError(DataError):
    """A variable that the chat template does not read. field: that of a request which sets it."""

    def __init__(self, message: str, field: str | None = None):
        super().__init__(message)
        self.field = field


def check_told(tokenizer: Any, told: Mapping[str, Any] | None) -> None:
    """Raises `TemplateVariableError` for a variable that the chat template does not read."""
    known = options_of(tokenizer.chat_template) if isinstance(tokenizer.chat_template, str) else frozenset()
    for name in told or ():
        if name not in known:
            place = f"chat_template_kwargs.{name[:40]}"
            listed = f"it reads {', '.join(sorted(known))}" if known else "it reads none"
            reason = f"this model's chat template does not read it; of such variables {listed}"
            raise TemplateVariableError(f"{place}: {reason}", place)


def chat_tokens(
    tokenizer: Any,
    messages: list[Message],
    tools: Sequence[Mapping[str, Any]] = (),
    told: Mapping[str, Any] | None = None,
) -> list[int]:
    """The tokens of a conversation, checked already, with the beginning of a reply. tools: functions that the model may
    call, in OpenAI's form. told: variables of the chat template, such as ``enable_thinking``. Raises
    `TemplateVariableError` for one that it does not read, `DataError` where it refuses the messages, and for text that
    is not valid Unicode."""
    check_told(tokenizer, told)
    told = {**(told or {}), **({"tools": tools} if tools else {})}
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **told)
    except Exception as error:  # templates are programs, and refuse in many ways
        raise DataError(f"the model's chat template refuses these messages: {error}") from error
    check_unicode(text, "the conversation")
    return list(tokenizer.encode(text, add_special_tokens=False))


def are_ids(asked: Any) -> bool:
    """Whether this is an array, a tensor or a list of whole numbers."""
    listed = isinstance(asked, list | tuple) and bool(asked) and all(type(one) is int for one in asked)
    return listed or is_tensor(asked) or isinstance(asked, np.ndarray)


def _conversation(prompt: str | list[Message], system: str | None) -> list[Message]:
    """The messages of a prompt, checked."""
    before = [] if system is None else [{"role": "system", "content": system}]
    if isinstance(prompt, str):
        if not prompt.strip():
            raise DataError("the prompt is empty")
        check_unicode(prompt, "the prompt")
        return [*before, {"role": "user", "content": prompt}]
    if not isinstance(prompt, list | tuple):
        raise DataError(f"it must be text or a list of messages, got {type(prompt).__name__}")
    if not prompt:
        raise DataError("the list of messages is empty")
    for number, message in enumerate(prompt):
        if not isinstance(message, Mapping):
            raise DataError(f"message {number} must be a dict with role and content, got {type(message).__name__}")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise DataError(f"message {number}: {key} must be text, got {message.get(key)!r}")
    return [*before, *map(dict, prompt)]


def _counted(ids: np.ndarray, mask: np.ndarray | None) -> list[np.ndarray]:
    """The rows [1, C] of ids [N, C], without what the mask leaves out."""
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size:
        raise DataError(f"token ids must be whole numbers of shape [N, C], got {_kind(ids)}")
    if mask is None:
        return [row[None] for row in ids]
    if mask.shape != ids.shape:
        raise DataError(f"attention_mask must have the shape {list(ids.shape)} of the token ids, got {_kind(mask)}")
    rows = [row[keep][None] for row, keep in zip(ids, mask.astype(bool), strict=True)]
    for number, row in enumerate(rows):
        if not row.size:
            raise DataError(f"row {number}: the attention_mask leaves no token")
    return rows


def _kind(values: np.ndarray) -> str:
    return f"{values.dtype} {list(values.shape)}"
