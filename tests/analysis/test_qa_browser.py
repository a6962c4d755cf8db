"""The report on question answering in a real headless browser: it fits, is legible, and tells its numbers."""

from __future__ import annotations

import json
import os

import pytest

pytest.importorskip("websocket", reason="the package websocket-client is not installed")

from retro.analysis.comparison import compare_runs
from retro.analysis.html_report import render_report
from retro.analysis.runs import load_runs
from retro.eval.metrics.qa_popularity import EDGES
from tests.analysis.builders import write_json
from tests.analysis.qa_builders import build_qa_pair, write_adaptive
from tests.serving.browser import Browser, find_browser
from tests.serving.live_server import wait_until

if find_browser() is None:
    pytest.skip("no Chromium or Chrome in PATH, and $CHROME is not set", allow_module_level=True)

# Texts of one chart whose boxes lie on each other.
CLASHES = """[...document.querySelectorAll('svg.chart')].flatMap(svg => {
  const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
  return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([b, q]) =>
    p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 1 && q.top < p.bottom - 1
  ).map(([b]) => svg.id + ': ' + a + ' on ' + b));
})"""
# What is drawn outside its chart, and text that a box cuts off.
OUTSIDE = """[...document.querySelectorAll('svg.chart')].flatMap(svg => {
  const r = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('circle, .mark, text')].filter(e => {
    const b = e.getBoundingClientRect();
    return b.left < r.left - 1 || b.right > r.right + 1 || b.top < r.top - 1 || b.bottom > r.bottom + 1;
  }).map(e => svg.id + ': ' + e.outerHTML);
})"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    gpt, retro = build_qa_pair(root / "runs", metrics=True)
    write_adaptive(retro / "eval/qa-popqa-test", gpt / "eval/qa-popqa-test")
    for path in (gpt / "eval/qa-popqa-test/results.json", retro / "eval/qa-popqa-test/results.json"):
        write_json(path, json.loads(path.read_text()) | {"by_popularity": {"edges": list(EDGES)}})
    runs = load_runs([gpt, retro])
    (root / "report.html").write_text(render_report(runs, compare_runs(runs, draws=300)), encoding="utf-8")
    with Browser() as browser:
        browser.open((root / "report.html").as_uri())
        yield browser


def resize(page, width):
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_as_wide_as_the_screen_and_charts_are_legible(page, width):
    resize(page, width)
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("document.querySelectorAll('#qa-1 svg.chart').length") == 5
    assert page.run(CLASHES) == []
    assert page.run(OUTSIDE) == []
    if pictures := os.environ.get("RETRO_PAGE_PICTURES"):
        page.run("document.querySelector('#qa-1').scrollIntoView()")
        page.screenshot(f"{pictures}/qa_report_{width}.png")
    assert page.console == []


def point_at(page, chart: str) -> bool:
    """Move the pointer over the first bin of a chart; whether its numbers are shown."""
    x, y = page.run(
        f"(() => {{ const e = document.querySelector('{chart}'); e.scrollIntoView({{block: 'center'}});"
        "const r = e.getBoundingClientRect(); return [r.x + r.width * 0.14, r.y + r.height / 2]; })()"
    )
    for shift in (20, 0):
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y + shift)
    return page.run("!document.getElementById('tip').hidden")


def test_a_chart_tells_the_numbers_of_every_arm_under_the_pointer(page):
    resize(page, 1280)
    # The page may still move after it was scrolled or made wider, and a pointer that does not move tells nothing.
    wait_until(lambda: point_at(page, "#qa-1 svg.chart"))
    tip = page.run("document.getElementById('tip').textContent")
    lines = tip.split("\n")
    assert lines[0] == "page views below 3" and len(lines) == 7
    assert any(line.startswith("RETRO++: ") and "[" in line and line.endswith("%]") for line in lines)
    assert page.console == []
