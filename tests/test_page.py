"""The page, in a real browser, against a real server."""

import shutil

import pytest

from serving import running, tiny_service

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def address(byte_tokenizer):
    service = tiny_service(byte_tokenizer)
    with running(service) as address:
        yield address


@pytest.fixture
def page(address):
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(address)
        page.wait_for_selector("#policy option", state="attached")
        page.locator("summary").click()
        yield page
        browser.close()
        assert [error for error in errors if "400" not in error] == []


def finished(page):
    page.wait_for_selector("#send:visible")


def test_send_stream_and_compare(page):
    page.locator("#net").fill("0.5")
    page.check("#compare")
    page.fill("#longest", "60")
    page.fill("#prompt", "What is a page of the KV cache, and who reads it when? " * 2)
    page.keyboard.press("Enter")
    page.wait_for_selector(".answer .said span", state="attached")
    finished(page)
    titles = page.locator(".answer h2").all_inner_texts()
    assert titles == ["policy 0.50", "dense"]
    budgeted, dense = page.locator(".answer").all()
    assert "net 1.00" in dense.locator(".facts").inner_text()
    shown = budgeted.locator(".facts").inner_text()
    assert "tokens/s" in shown
    assert float(shown.split("net ")[1].split(" ")[0]) < 0.75
    colours = {span.evaluate("e => e.style.backgroundColor") for span in budgeted.locator(".said span").all()}
    assert len(colours) > 2
    assert budgeted.locator(".bars > div").count() == 3
    assert "k" in budgeted.locator(".said span").last.get_attribute("title")


def test_the_dial_is_kept_over_a_reload_and_so_is_the_talk(page):
    page.locator("#net").fill("0.72")
    page.fill("#longest", "5")
    page.fill("#prompt", "hello")
    page.click("#send")
    finished(page)
    said = page.locator(".answer .said").inner_text()
    page.reload()
    page.wait_for_selector("#policy option", state="attached")
    page.wait_for_selector(".answer")
    assert page.locator("#net-value").inner_text() == "0.72"
    assert page.locator(".answer .said").inner_text() == said
    page.click("#clear")
    assert page.locator(".turn").count() == 0


def test_axes_and_dense(page):
    page.check("#axes")
    page.locator("#mlp").fill("0.6")
    assert page.locator("#mlp-value").inner_text() == "0.60"
    assert page.locator("#net").is_disabled()
    page.select_option("#policy", "dense")
    assert page.locator("#mlp").is_disabled()


def test_escape_stops(page, address):
    page.fill("#longest", "400")
    page.fill("#prompt", "go on")
    page.keyboard.press("Enter")
    page.wait_for_selector(".answer .said span", state="attached")
    page.keyboard.press("Escape")
    finished(page)
    assert "stopped" in page.locator(".facts").inner_text() or "tokens" in page.locator(".facts").inner_text()
    page.fill("#longest", "3")
    page.fill("#prompt", "again")
    page.keyboard.press("Enter")
    finished(page)
    assert page.locator(".turn.assistant").count() == 2


def test_a_refusal_is_shown(page):
    page.fill("#prompt", "x" * 600)
    page.keyboard.press("Enter")
    finished(page)
    assert "context" in page.locator(".facts.failed").inner_text()
