"""What a token costs in Python: the files of solm that a decode step enters, from the second token on."""

import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import httpx

import solm
from helpers.serving import CHAT, running, with_template
from solm.serving.service import Service
from solm.serving.settings import ServeSettings

ROOT = str(Path(solm.__file__).parent)
MOST = {"generate": 9, "serve": 14}
"""Without the tokenizer, which is transformers' here, and the command line's loop."""


class Entered:
    """Files whose functions are called in threads that begin inside the block and in this one, while `on`."""

    def __init__(self):
        self.files, self.on = set(), False

    def __call__(self, frame, event, argument):
        file = frame.f_code.co_filename
        if self.on and event == "call" and file.startswith(ROOT):
            self.files.add(file.removeprefix(ROOT + "/"))


@contextmanager
def profiled():
    seen = Entered()
    threading.setprofile(seen)
    sys.setprofile(seen)
    try:
        yield seen
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def test_a_token_of_generate(cpu_lm):
    for budget in (None, "keep=0.8"):
        stream = cpu_lm.stream(CHAT[1]["content"], budget=budget, max_new_tokens=8, eos_token_id=-1)
        next(stream), next(stream)
        with profiled() as seen:
            seen.on = True
            next(stream)
        assert len(seen.files) <= MOST["generate"], sorted(seen.files)


def test_a_token_of_serve(cpu_lm, byte_tokenizer):
    cpu_lm.tokenizer = with_template(byte_tokenizer)
    body = {
        "model": "tiny", "messages": CHAT, "max_tokens": 200, "stream": True, "logit_bias": {"2": -100},
        "efficiency": {"budget": "keep=0.8"},
    }  # fmt: skip
    with profiled() as seen, running(Service(cpu_lm, ServeSettings(), "tiny")) as address:
        with httpx.stream("POST", address + "/v1/chat/completions", json=body, timeout=60) as answer:
            for number, line in enumerate(answer.iter_lines()):
                seen.on = 10 < number < 90 and line != "data: [DONE]"
        seen.on = False
    assert len(seen.files) <= MOST["serve"], sorted(seen.files)
