"""A server of the tiny model on a real port, and the official client."""

import openai
import pytest

from helpers.serving import running, tiny_service


@pytest.fixture(scope="module")
def service(byte_tokenizer):
    return tiny_service(byte_tokenizer, max_rows=8)


@pytest.fixture(scope="module")
def address(service):
    with running(service, hosts=("127.0.0.1", "localhost", "::1")) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
