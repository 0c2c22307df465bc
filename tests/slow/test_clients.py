"""Clients that others wrote, against a server of the tiny model: `pip install -e '.[clients]'`. The official client is
that of the default tests. Every one gets what the server says to a plain request."""

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
