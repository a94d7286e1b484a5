"""The page in a real browser: no errors, no network, every figure drawn, readable text, on desktop and phone."""

from __future__ import annotations

import os
import shutil

import pytest

from cdmem.report.build import write_report
from support.report import make_study_folder

CHROMIUM = os.environ.get("CDMEM_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)")

CONTRAST = """() => {
  const lin = v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 };
  const lum = c => 0.2126 * lin(c[0]) + 0.7152 * lin(c[1]) + 0.0722 * lin(c[2]);
  const rgb = s => s.match(/[\\d.]+/g).map(Number);
  const ground = e => { while (e) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; e = e.parentElement } return [255, 255, 255] };
  let worst = 99, where = '';
  for (const e of document.querySelectorAll('h1,h2,h3,p,td,th,figcaption,caption,a,summary,li,span,div.wall>div')) {
    if (!e.textContent.trim() || !e.offsetParent) continue;
    const a = lum(rgb(getComputedStyle(e).color)), b = lum(ground(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst) { worst = ratio; where = e.tagName + ' ' + e.className + ' ' + e.textContent.slice(0, 40) }
  }
  return [worst, where];
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(make_study_folder(tmp_path_factory.mktemp("study") / "run"))


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install 'cdmem[test]')")
    with api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_the_page_is_whole(browser, report, scheme, width, height):
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    errors, requests = [], []
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    assert errors == []
    assert [r for r in requests if not r.startswith(("file:", "data:"))] == [] and len(requests) >= 1
    boxes = page.eval_on_selector_all("svg.chart", "all => all.map(e => [e.clientWidth, e.clientHeight])")
    assert len(boxes) >= 8 and all(w > 200 and h > 80 for w, h in boxes)
    broken = page.eval_on_selector_all("img", "all => all.filter(e => !e.complete || !e.naturalWidth).length")
    assert broken == 0 and page.eval_on_selector_all("img", "all => all.length") > 20
    # Nothing but tables, which scroll in their own boxes, is wider than the screen.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    worst, where = page.evaluate(CONTRAST)
    assert worst >= 4.5, where
    page.close()


def test_a_heading_sorts_its_table(browser, report):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(report.as_uri())
    head = page.locator("table.sortable thead th").nth(1)
    head.click()
    assert head.get_attribute("aria-sort") == "ascending"
    cells = page.eval_on_selector_all(
        "table.sortable >> nth=0 >> tbody tr", "rows => rows.map(r => r.cells[1].innerText)"
    )
    values = [float(c.split()[0]) for c in cells if c.strip() not in ("", "–")]
    assert values == sorted(values)
    page.close()
