"""The page in a real headless browser."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("websocket", reason="the package websocket-client is not installed")

from tests.serving.browser import Browser, find_browser
from tests.serving.fake_engine import HOSTILE, fake_model
from tests.serving.live_server import LiveServer, wait_until

if find_browser() is None:
    pytest.skip("no Chromium or Chrome in PATH, and $CHROME is not set", allow_module_level=True)

IDLE = "!document.getElementById('generate').disabled"


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


@pytest.fixture
def page(browser, start):
    """The page of a fresh server, loaded and connected; `page.served`. Its console stays clean."""
    browser.served = start(slots=4)
    browser.console.clear()
    browser.open(browser.served.live.url + "/")
    browser.wait("document.getElementById('model').textContent.includes('fake')")
    yield browser
    if pictures := os.environ.get("RETRO_PAGE_PICTURES"):
        name = os.environ["PYTEST_CURRENT_TEST"].rpartition("::")[2].partition(" ")[0]
        browser.screenshot(f"{pictures}/{name}.png")


def prepare(page, prompt: str, **fields: object) -> None:
    """Fill in the form as a reader does."""
    page.run("document.getElementById('prompt').focus()")
    page.type(prompt)
    for name, value in {"temperature": 0, "seed": 1, **fields}.items():
        page.run(f"document.getElementById('{name}').value = {value!r}")


def text(page, selector: str) -> str:
    return page.run(f"document.querySelector('{selector}').textContent")


def count(page, selector: str) -> int:
    return page.run(f"document.querySelectorAll('{selector}').length")


def test_text_appears_as_it_streams_with_its_evidence_beside_it(page):
    prepare(page, "slow hello", max_tokens=30)
    page.click("#generate")
    page.wait("document.querySelectorAll('.chunk').length >= 2")
    assert page.run("document.querySelector('.text').getAttribute('aria-busy')") == "true"
    early = text(page, ".new")
    assert page.run("!document.getElementById('stop').disabled")
    page.wait(IDLE)
    assert text(page, ".given") == "slow hello"
    expected = "alpha beta gamma délta epsilon "[:29]  # the é takes two of the 30 tokens
    assert text(page, ".new") == expected and expected.startswith(early) and len(early) < 29
    assert text(page, "#status") == "Done." and "30 tokens" in text(page, ".summary")
    chunks = page.run("[...document.querySelectorAll('.chunk')].map(e => e.textContent)")
    assert "".join(chunks) == expected and chunks[:2] == ["alph", "a be"]
    assert count(page, ".cards > .card") == len(chunks) == 8
    # Beside the text, not below it.
    left, right = page.run(
        "['.written', 'aside'].map(s => document.querySelector(s).getBoundingClientRect()).map(r => [r.left, r.top])"
    )
    assert right[0] > left[0] + 300 and right[1] == left[1]
    first = text(page, ".card")
    assert "Title of doc-7" in first and "doc-7 · chunk 7" in first and "distance 0.50" in first
    assert page.console == []


def test_a_chunk_and_its_evidence_light_up_together(page):
    prepare(page, "hi", max_tokens=8)
    page.key("Enter", modifiers=2, code=13)
    page.wait(IDLE + " && document.querySelectorAll('.chunk').length === 2")
    lit = "[...document.querySelectorAll('.lit')].map(e => e.id.split('-').slice(1).join(' ')).sort()"
    page.run("document.querySelectorAll('.chunk')[1].focus()")
    assert page.run(lit) == ["card 1", "chunk 1"]
    page.key("Enter", code=13)
    assert page.run("document.activeElement.id.endsWith('card-1')")
    page.run("document.activeElement.blur()")
    assert page.run(lit) == []
    assert page.run("document.getElementById(document.querySelector('.chunk').getAttribute('aria-details')).className")
    assert page.console == []


def test_hostile_text_of_a_document_is_shown_and_not_run(page):
    prepare(page, "<img src=x onerror=window.hacked=1>", max_tokens=4)
    page.click("#generate")
    page.wait(IDLE + " && document.querySelectorAll('.card').length === 1")
    assert HOSTILE in text(page, ".card blockquote")
    assert text(page, ".given") == "<img src=x onerror=window.hacked=1>"
    assert page.run("window.hacked") is None
    assert count(page, "#output script") == count(page, "#output img") == 0
    assert page.console == []


def test_the_policy_of_the_page_forbids_what_escaping_would_miss(page):
    page.run("document.getElementById('output').innerHTML = '<img src=x onerror=window.hacked=1>'")
    page.wait("document.querySelector('#output img')?.complete")
    assert page.run("window.hacked") is None
    page.wait("true")
    assert any("Content Security Policy" in message for _, message in page.console)


def test_compare_shows_both_sides_with_one_seed(page):
    prepare(page, "hi", max_tokens=8, temperature=1, seed="")
    page.click("#compare")
    page.click("#generate")
    page.wait(IDLE + " && document.querySelectorAll('.panel').length === 2")
    titles = page.run("[...document.querySelectorAll('.written h2')].map(e => e.textContent)")
    assert titles == ["With retrieval", "Without retrieval"]
    on, off = page.run("[...document.querySelectorAll('.new')].map(e => e.textContent)")
    assert on == off and len(on) >= 7  # the fake draws by the seed alone
    assert count(page, ".panel:nth-child(1) .chunk") == 2 and count(page, ".panel:nth-child(2) .chunk") == 0
    assert count(page, ".panel:nth-child(2) aside") == 0
    tops = page.run("[...document.querySelectorAll('.panel')].map(e => e.getBoundingClientRect().top)")
    assert tops[0] == tops[1], "side by side"
    assert page.console == []


def test_stop_ends_the_generation_and_keeps_the_text(page):
    prepare(page, "slow", max_tokens=1000)
    page.click("#generate")
    page.wait("document.querySelectorAll('.chunk').length >= 1")
    page.click("#stop")
    page.wait(IDLE)
    assert text(page, "#status") == "Stopped." and text(page, ".new").startswith("al")
    wait_until(lambda: page.served.engine.active == 0)
    wait_until(lambda: page.served.live.metric("retro_cancelled_requests_total", reason="disconnect") == 1)
    assert page.run("document.getElementById('error').hidden") and page.console == []


def test_settings_reach_the_server(page):
    prepare(page, "hi", max_tokens=5, num_neighbors=3)
    page.click("#generate")
    page.wait(IDLE + " && document.querySelectorAll('.card').length === 2")
    assert count(page, ".card:first-child details") == 3
    page.run("document.getElementById('retrieve').value = 'off'")
    page.click("#generate")
    page.wait(IDLE + " && !document.querySelector('.card') && document.querySelector('.new').textContent")
    assert count(page, "aside") == 0 and page.console == []


def test_a_server_without_retrieval_has_a_page_that_works(browser):
    """Hidden fields do not keep the form from being sent, whatever they hold."""
    model = fake_model()
    model.num_neighbors = 0
    with LiveServer(model) as live:
        browser.console.clear()
        browser.open(live.url + "/")
        browser.wait("document.getElementById('model').textContent.includes('without retrieval')")
        assert count(browser, ".retrieval:not([hidden])") == 0
        prepare(browser, "hi", max_tokens=5)
        browser.click("#generate")
        browser.wait(IDLE + " && document.querySelector('.new')?.textContent === 'alpha'")
        assert count(browser, "aside") == 0 and browser.console == []


def test_fields_of_another_policy_do_not_keep_the_form_from_being_sent(page):
    prepare(page, "hi", max_tokens=5, interval=1000, threshold=7)
    page.click("#generate")
    page.wait(IDLE + " && document.querySelector('.new')?.textContent === 'alpha'")
    assert text(page, ".summary").endswith("seed 1") and page.console == []


def test_a_server_that_goes_away_is_named(page):
    prepare(page, "slow", max_tokens=1000)
    page.click("#generate")
    page.wait("document.querySelectorAll('.chunk').length >= 1")
    page.wait("document.querySelector('.new').textContent.startsWith('al')")
    page.served.live.cut()
    page.wait(IDLE)
    assert text(page, "#error") == "The connection ended before the text did."
    assert text(page, "#status") == "Failed." and text(page, ".new").startswith("al")
    page.served.live.__exit__()
    page.click("#generate")
    page.wait(IDLE + " && document.getElementById('error').textContent.startsWith('The server does not answer')")


def test_errors_are_shown(page):
    prepare(page, "refuse", max_tokens=5)
    page.click("#generate")
    page.wait("!document.getElementById('error').hidden")
    assert text(page, "#error") == "prompt: this engine refuses it"
    assert page.run("document.getElementById('error').getAttribute('role')") == "alert"
    page.run("document.getElementById('prompt').value = 'now a good one'")
    page.click("#generate")
    page.wait(IDLE + " && document.querySelector('.new').textContent === 'alpha'")
    assert page.run("document.getElementById('error').hidden")
    # The browser itself notes the 400; the page adds nothing.
    assert all("status of 400" in message for _, message in page.console)


def test_everything_can_be_reached_and_named_without_a_mouse(page):
    unnamed = page.run(
        "[...document.querySelectorAll('input, select, textarea, button')].filter(e => !e.labels?.length &&"
        " !e.textContent.trim()).map(e => e.id)"
    )
    assert unnamed == []
    assert page.run("document.documentElement.lang") == "en" and page.run("document.title")
    page.run("document.body.focus()")
    reached = []
    for _ in range(14):
        page.key("Tab", code=9)
        reached.append(page.run("document.activeElement.id"))
    assert {"prompt", "max_tokens", "temperature", "retrieve", "num_neighbors", "generate", "compare"} <= set(reached)
    assert page.console == []


def test_narrow_screens_have_one_column_and_no_sideways_scrolling(page):
    page.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
    try:
        prepare(page, "hi " + "x" * 200, max_tokens=12)
        page.click("#generate")
        page.wait(IDLE + " && document.querySelectorAll('.card').length === 3")
        assert page.run("document.documentElement.scrollWidth") <= 390
    finally:
        page.call("Emulation.clearDeviceMetricsOverride")


def test_the_page_loads_nothing_from_elsewhere(page):
    names = page.run("performance.getEntriesByType('resource').map(e => e.name)")
    assert names and all(name.startswith(page.served.live.url + "/") for name in names)
