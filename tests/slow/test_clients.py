"""Clients that others wrote, against a server of the tiny model: `pip install -e '.[clients]'`. The official client is
that of the default tests. Every one gets what the server says to a plain request."""

import os
import subprocess
import sys

import httpx
import pytest
from pydantic import BaseModel

from helpers.serving import LONG, running, tiny_service

BUDGET = {"efficiency": {"budget": "keep=0.6"}}


@pytest.fixture(scope="module")
def address(byte_tokenizer):
    with running(tiny_service(byte_tokenizer, max_rows=8)) as address:
        yield address


@pytest.fixture(scope="module")
def said(address):
    """What the server answers to a plain request: by the route of its body."""

    def ask(path: str, **body) -> str:
        answer = httpx.post(f"{address}/v1/{path}", json={"model": "tiny", "temperature": 0, **body})
        assert answer.status_code == 200, answer.text
        choice = answer.json()["choices"][0]
        return choice["message"]["content"] if "message" in choice else choice["text"]

    return ask


def chat(said, **options) -> str:
    return said("chat/completions", messages=[{"role": "user", "content": LONG}], max_tokens=16, **options)


@pytest.mark.parametrize("responses", [False, True])
def test_langchain(address, said, responses):
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(
        model="tiny", base_url=f"{address}/v1", api_key="none", temperature=0, max_tokens=16, extra_body=BUDGET,
        use_responses_api=responses, metadata={"run": "7"},
    )  # fmt: skip
    expected = chat(said, **BUDGET)
    answer = model.invoke(LONG)
    assert answer.text == expected
    assert answer.usage_metadata["output_tokens"] <= 16
    pieces = list(model.stream(LONG))
    assert "".join(piece.text for piece in pieces) == expected
    assert len(model.batch([LONG, "other"])) == 2


def test_langchains_completions(address, said):
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.OpenAI(
        model="tiny", base_url=f"{address}/v1", api_key="none", temperature=0, max_tokens=16, presence_penalty=0.5,
        frequency_penalty=0.5,
    )  # fmt: skip
    expected = said("completions", prompt=LONG, max_tokens=16, presence_penalty=0.5, frequency_penalty=0.5)
    assert model.invoke(LONG) == expected
    assert "".join(model.stream(LONG)) == expected


class Verdict(BaseModel):
    """Finite but for white space between its parts, so that even a random model comes to its end."""

    right: bool


def test_langchains_structured_output(address):
    langchain = pytest.importorskip("langchain_openai")
    pytest.importorskip("llguidance")
    model = langchain.ChatOpenAI(model="tiny", base_url=f"{address}/v1", api_key="none", max_tokens=300)
    assert isinstance(model.with_structured_output(Verdict, method="json_schema").invoke(LONG), Verdict)


def test_llama_index(address, said):
    library = pytest.importorskip("llama_index.llms.openai_like")
    from llama_index.core.llms import ChatMessage

    def model(chat: bool):
        return library.OpenAILike(
            model="tiny", api_base=f"{address}/v1", api_key="none", is_chat_model=chat, context_window=512,
            max_tokens=16, temperature=0, additional_kwargs={"seed": 1},
        )  # fmt: skip

    expected, messages = chat(said), [ChatMessage(role="user", content=LONG)]
    assert model(True).chat(messages).message.content == expected
    assert "".join(piece.delta or "" for piece in model(True).stream_chat(messages)) == expected
    expected = said("completions", prompt=LONG, max_tokens=16)
    assert model(False).complete(LONG).text == expected
    assert "".join(piece.delta or "" for piece in model(False).stream_complete(LONG)) == expected


def test_litellm(address, said, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the network for prices
    litellm = pytest.importorskip("litellm")
    common = {"model": "openai/tiny", "api_base": f"{address}/v1", "api_key": "none", "temperature": 0}
    asked = {"messages": [{"role": "user", "content": LONG}], "max_tokens": 16, "user": "me", **common}
    expected = chat(said, **BUDGET)
    answer = litellm.completion(**asked, extra_body=BUDGET)
    assert answer.choices[0].message.content == expected
    pieces = litellm.completion(**asked, extra_body=BUDGET, stream=True, stream_options={"include_usage": True})
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == expected
    plain = litellm.text_completion(**common | {"model": "text-completion-openai/tiny"}, prompt=LONG, max_tokens=16)
    assert plain.choices[0].text == said("completions", prompt=LONG, max_tokens=16)
    response = litellm.responses(**common, input=LONG, max_output_tokens=16)
    assert response.output[0].content[0].text == chat(said)


def test_the_llm_command(address, said, tmp_path):
    pytest.importorskip("llm")
    for name, chats in (("tiny-chat", "true"), ("tiny-plain", "false")):
        (tmp_path / "extra-openai-models.yaml").open("a").write(
            f"- model_id: {name}\n  model_name: tiny\n  api_base: {address}/v1\n  completion: {chats == 'false'}\n"
        )
    expected = {"tiny-chat": chat(said), "tiny-plain": said("completions", prompt=LONG, max_tokens=16)}
    for name, text in expected.items():
        for more in ([], ["--no-stream"]):
            done = subprocess.run(
                [sys.executable, "-m", "llm", "-m", name, "-o", "max_tokens", "16", "-o", "temperature", "0",
                 "-o", "presence_penalty", "0", "--no-log", *more, LONG],
                capture_output=True, text=True, timeout=300,
                env={**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none",
                     "LLM_LOAD_PLUGINS": ""},
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert done.stdout.rstrip("\n") == text.rstrip("\n")


def test_lm_evals_chat(address, said):
    """`local-chat-completions`; the default tests have `local-completions`."""
    models = pytest.importorskip("lm_eval.models.openai_completions")
    from lm_eval.api.instance import Instance

    model = models.LocalChatCompletion(base_url=f"{address}/v1/chat/completions", model="tiny")
    asked = model.apply_chat_template([{"role": "user", "content": LONG}])
    wanted = {"until": ["\x00never"], "max_gen_toks": 16, "do_sample": False}
    (text,) = model.generate_until([Instance("generate_until", {}, (asked, wanted), 0)])
    assert text == chat(said, seed=1234)
