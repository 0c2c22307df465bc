"""The page in Chromium."""

import shutil
from contextlib import contextmanager

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = "no Chromium on this machine: the page is not tested"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


@contextmanager
def chromium():
    """A running browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(browser, address, **options):
    """The page of the server at `address`, its dial open; fails at the end where the browser reported an error.

    options: of Playwright's new_context.
    """
    with browser.new_context(**options) as context:
        page = context.new_page()
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(address)
        page.wait_for_selector("#policy option", state="attached")
        page.set_default_timeout(20_000)  # a loaded machine is no bug
        page.locator("#dial").evaluate("dial => { dial.open = true }")
        page.locator("#sampling summary").click()
        yield page
    assert [error for error in errors if "400" not in error] == []


def finished(page):
    """Wait until no reply streams."""
    page.wait_for_selector("#send:visible")


def say(page, text):
    """Send a message and wait for the replies."""
    page.fill("#prompt", text)
    page.focus("#prompt")
    page.keyboard.press("Enter")
    finished(page)


def answers_with(page, text, piece=3):
    """From now on every reply of the server is `text`, a few characters a token."""
    import json

    events = []
    for at in range(0, len(text), piece):
        told = text[at : at + piece]
        token = {
            "text": told, "action": "k60-m60-b16", "cost": 0.8, "realised": {"attention": 1, "mlp": 0.6, "bits": 1},
            "controllable": {"attention": False, "mlp": at > 0, "bits": False}, "guessed": None if at % 2 else "draft",
        }  # fmt: skip
        choice = {"index": 0, "delta": {"content": told}, "efficiency": {"tokens": [token]}}
        events.append(f"data: {json.dumps({'choices': [choice]})}\n\n")
    body = "".join(events) + "data: [DONE]\n\n"
    page.unroute_all()
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(body=body, headers={"content-type": "text/event-stream; charset=utf-8"}),
    )
