"""Replies that think: a small template like Qwen 3's, and a sampler that follows a script."""

from solm.runtime.sampling import Sampler

TEMPLATE = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool.function.name }} {% endfor %}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function.name }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
)
OPEN = TEMPLATE.replace("{% if enable", "{% if not enable_thinking is defined %}<think>\n{% endif %}{% if enable")
"""The same, but the prompt opens the thinking, as those of DeepSeek R1 and QwQ do."""


def follow(monkeypatch, text: str) -> None:
    """From now on every reply of a model whose tokens are bytes is `text`, and ends. Where a grammar holds, the model
    chooses."""
    script, own = [3 + sorted_alphabet().index(letter) for letter in spelled(text)], Sampler.choose

    def choose(self, logits, guess=None):
        place = self.__dict__.setdefault("place", 0)
        self.place += 1
        if self.constraint is not None and not self.free:
            return own(self, logits, guess)
        return script[place] if place < len(script) else 2

    monkeypatch.setattr(Sampler, "choose", choose)


def sorted_alphabet() -> list[str]:
    """The tokens of the byte tokenizer after its three special ones."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def spelled(text: str) -> str:
    """`text` in the letters that stand for bytes."""
    from gguf.vocab import bytes_to_unicode

    letters = bytes_to_unicode()
    return "".join(letters[byte] for byte in text.encode())
