"""A report in a browser of a phone's width."""

import shutil

import pytest

from solm.evaluation.report import render


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_overflow(result, tmp_path, scheme):
    sync_api = pytest.importorskip("playwright.sync_api")
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser_path is None:
        pytest.skip("no browser")
    (tmp_path / "page.html").write_text(render([("eval", result)]))
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
        page.goto((tmp_path / "page.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        ink, paper = page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).background]"
        )
        assert ("rgb(33, 37, 41)" in ink) == (scheme == "light")
        assert "rgb(255, 255, 255)" in paper or scheme == "dark"
        browser.close()
