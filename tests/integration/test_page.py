"""The page, in a real browser, against a real server."""

import re

import pytest

from helpers.browser import CHROMIUM, MISSING, chromium, finished, opened
from helpers.serving import running, slow_steps, steps_by_budget, tiny_service, until

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def service(byte_tokenizer):
    """Without a token that ends replies: sampled ones are as long as asked, and never done before a test looks."""
    service = tiny_service(byte_tokenizer)
    service.lm.model.generation_config.eos_token_id = None
    return service


@pytest.fixture(scope="module")
def address(service):
    with running(service) as address:
        yield address


@pytest.fixture
def slow(monkeypatch):
    """Steps of 50 ms, so that a reply can be stopped while it streams."""
    slow_steps(monkeypatch, 0.05)


@pytest.fixture
def page(browser, address, request):
    with opened(browser, address, **getattr(request, "param", {})) as page:
        yield page


def test_send_stream_and_compare(page):
    page.locator("#bytes").fill("0.8")
    page.check("#compare")
    page.fill("#longest", "60")
    page.fill("#prompt", "What is a page of the KV cache, and who reads it when? " * 2)
    page.keyboard.press("Enter")
    page.wait_for_selector(".answer .said span", state="attached")
    finished(page)
    titles = page.locator(".answer h2").all_inner_texts()
    assert titles == ["policy, budget 0.80", "dense"]
    budgeted, dense = page.locator(".answer").all()
    assert "bytes" not in dense.locator(".facts").first.inner_text()
    assert dense.locator(".bars > div").count() == 0
    shown = budgeted.locator(".facts").first.inner_text()
    steps = []
    for answer in (budgeted, dense):
        told = answer.locator(".facts").first.inner_text()
        assert "tokens/s" in told
        steps.append(float(re.search(r"([\d.]+) ms per token", told)[1]))
        factor = float(re.search(r"([\d.]+)× dense speed", told)[1])
    assert factor == 1  # of the dense answer itself
    factor = float(re.search(r"([\d.]+)× dense speed", shown)[1])
    assert factor == pytest.approx(steps[1] / steps[0], rel=0.1, abs=0.02)
    spent_bytes, of = map(float, re.search(r"bytes ([\d.]+) of ([\d.]+) asked", shown).groups())
    assert of == 0.8
    assert spent_bytes < 0.85
    colours = {span.evaluate("e => e.style.backgroundColor") for span in budgeted.locator(".said span").all()}
    assert len(colours) > 2
    assert budgeted.locator(".bars > div").count() == 3
    budgeted.locator(".said span").evaluate_all("all => all.find((one) => one.offsetWidth > 4).click()")
    assert budgeted.locator(".picked").inner_text().rpartition("”: ")[2].startswith("k")
    asked, spent = (
        budgeted.locator(f".meter {part}").evaluate("e => e.getBoundingClientRect().right") for part in "bi"
    )
    bar = budgeted.locator(".meter").bounding_box()
    assert (asked - bar["x"]) / bar["width"] == pytest.approx(0.8, abs=0.02)
    assert (spent - bar["x"]) / bar["width"] == pytest.approx(spent_bytes, abs=0.02)
    heights = budgeted.locator(".columns i").evaluate_all("all => all.map(bar => bar.offsetHeight)")
    assert len(heights) > 3
    assert max(heights) > 5


def test_the_dense_answer_waits_for_the_other(page, service, monkeypatch):
    steps_by_budget(monkeypatch, 0.3)  # the dense one takes so long that it is stopped long before its end
    page.check("#compare")
    page.fill("#longest", "60")
    page.fill("#prompt", "go on")
    page.keyboard.press("Enter")
    page.wait_for_selector(".answer:nth-child(1) .said span", state="attached")
    assert page.locator(".answer:nth-child(2) .said span").count() == 0
    page.wait_for_selector(".answer:nth-child(2) .said span", state="attached")
    assert page.locator(".facts").first.inner_text().startswith("60 tokens")
    page.keyboard.press("Escape")
    finished(page)
    assert "dense speed" not in page.locator(".facts").first.inner_text()


def test_the_dial_is_kept_over_a_reload_and_so_is_the_talk(page):
    page.locator("#bytes").fill("0.82")
    page.fill("#longest", "5")
    page.fill("#prompt", "hello")
    page.click("#send")
    finished(page)
    said = page.locator(".answer .said").inner_text()
    page.reload()
    page.wait_for_selector("#policy option", state="attached")
    page.wait_for_selector(".answer")
    sync_api.expect(page.locator("#bytes-value")).to_have_text("0.82")
    assert page.locator(".answer .said").inner_text() == said
    page.click("#clear")
    assert page.locator(".turn").count() == 0


def test_axes_and_dense(page):
    page.check("#axes")
    page.locator("#mlp").fill("0.6")
    assert page.locator("#mlp-value").inner_text() == "0.60"
    assert page.locator("#bytes").is_disabled()
    page.select_option("#policy", "dense")
    assert page.locator("#mlp").is_disabled()


@pytest.mark.parametrize("how", ["escape", "button"])
def test_a_reply_is_stopped_while_it_streams(page, service, slow, how):
    page.fill("#longest", "400")
    page.fill("#prompt", "go on")
    page.keyboard.press("Enter")
    page.wait_for_selector(".answer .said span", state="attached")
    assert page.locator("#talk").get_attribute("aria-busy") == "true"
    page.keyboard.press("Escape") if how == "escape" else page.click("#stop")
    finished(page)
    until(lambda: service.scheduler.busy == 0)
    assert "stopped" in page.locator(".facts").inner_text()
    assert page.locator(".answer .said span").count() < 400
    page.fill("#longest", "3")
    page.fill("#prompt", "again")
    page.keyboard.press("Enter")
    finished(page)
    assert page.locator(".turn.assistant").count() == 2


def test_a_new_chat_forgets_the_reply_that_was_streaming(page, service, slow):
    page.fill("#longest", "400")
    page.fill("#prompt", "go on")
    page.keyboard.press("Enter")
    page.wait_for_selector(".answer .said span", state="attached")
    assert not page.locator(".empty").is_visible()
    page.click("#clear")
    finished(page)
    until(lambda: service.scheduler.busy == 0)
    page.reload()
    page.wait_for_selector("#policy option", state="attached")
    assert page.locator(".turn").count() == 0
    assert page.locator(".empty").is_visible()


def test_the_slider_moves_by_keys_and_the_next_reply_obeys(page):
    page.focus("#bytes")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    assert page.locator("#bytes-value").inner_text() == "0.82"
    page.locator("#talk").focus()
    page.keyboard.press("/")
    page.keyboard.type("hello")
    page.fill("#longest", "3")
    page.focus("#prompt")
    page.keyboard.press("Enter")
    finished(page)
    assert page.locator(".user .said").inner_text() == "hello"
    assert page.locator(".answer h2").inner_text() == "policy, budget 0.82"


def counts(answer, messages: int) -> bool:
    """Whether an answer of the server counts the tokens of so many messages."""
    return answer.url.endswith("tokenize") and len(answer.request.post_data_json["messages"]) == messages


def test_the_slider_ends_at_what_the_context_allows(page, service):
    """The share is a bare number in the request, and one at the end of the slider is never refused."""
    sent = []
    page.on("request", lambda request: sent.append(request.post_data_json) if "chat" in request.url else None)
    page.fill("#longest", "3")
    least = [float(page.locator("#bytes").get_attribute("min"))]
    for number, text in enumerate(("hi", "a longer message, which leaves more to be saved " * 4), start=1):
        page.fill("#prompt", text)
        page.locator("#bytes").fill("0.01")
        with page.expect_response(lambda answer, most=2 * number: counts(answer, most)) as counted:
            page.click("#send")
            finished(page)
        told = f"After these {counted.value.json()['count']:,} tokens"
        sync_api.expect(page.locator("#least")).to_contain_text(told)
        least.append(float(page.locator("#bytes").get_attribute("min")))
    assert least == sorted(least, reverse=True)
    assert page.locator(".failed").count() == 0
    assert all(request["efficiency"]["budget"] in least for request in sent)
    assert f"at least {least[-1]:.2f}" in page.locator("#least").inner_text()


def test_a_short_reply_says_why_it_saved_no_attention(page):
    page.fill("#longest", "10")
    page.fill("#prompt", "hi")
    page.keyboard.press("Enter")
    finished(page)
    shown = page.locator(".answer").inner_text()
    assert "Attention read everything in the first 9 of 9 steps, as it does in the first 37 tokens" in shown
    assert "KV pages 1.00" in shown
    assert "MLP 1.00" not in shown


PHONES = [
    {"viewport": {"width": 390, "height": 844}, "color_scheme": scheme, "has_touch": True}
    for scheme in ("light", "dark")
]


@pytest.mark.parametrize("page", PHONES, ids=["light", "dark"], indirect=True)
def test_it_fits_a_phone_in_either_light(page):
    page.check("#compare")
    page.fill("#longest", "80")
    page.fill("#prompt", "What is a page of the KV cache, and who reads it when? ")
    page.locator("#send").tap()
    finished(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert not page.locator("#bytes").is_visible()
    page.locator("#dial > summary").tap()
    page.wait_for_selector("#bytes:visible")
    boxes = [answer.bounding_box() for answer in page.locator(".answer").all()]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)
    assert boxes[1]["y"] > boxes[0]["y"] + boxes[0]["height"]
    back, text = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    brightness = [sum(int(part) for part in colour[4:-1].split(",")) for colour in (back, text)]
    assert abs(brightness[0] - brightness[1]) > 450
    assert (brightness[0] < brightness[1]) == page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")


def test_a_refusal_is_shown(page):
    page.fill("#prompt", "x" * 600)
    page.keyboard.press("Enter")
    finished(page)
    assert "context" in page.locator(".facts.failed").inner_text()
