"""The report's page as somebody uses it, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from rarl.evaluation.report import write_report
from rarl.samples import Sample
from tests.report_page import Page, start_browser
from tests.report_runs import HOSTILE, draw_data, replies, write_comparison, write_sites

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparison(tmp_path_factory.mktemp("comparison"), draw_data())


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    started = start_browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.quit()


@pytest.fixture(scope="module")
def path(comparison: Path) -> Path:
    return write_report(comparison)


def right(sample: Sample) -> bool:
    return bool(sample.rewards["correct"])


def test_filters_leave_exactly_what_they_say(
    browser: webdriver.Chrome, path: Path, comparison: Path
) -> None:
    page = Page(browser, path)
    rarl, sft = (
        [*replies(comparison, f"{m}-0", "seen"), *replies(comparison, f"{m}-0", "unseen")]
        for m in ("rarl", "sft")
    )
    assert page.matches() == len(rarl) == 105
    page.choose("data", "unseen")
    assert page.matches() == 45
    page.choose("outcome", "wrong")
    assert page.matches() == sum(not right(p) for p in rarl[60:])
    page.choose("model", "sft")
    assert page.matches() == sum(not right(p) for p in sft[60:])
    page.choose("pair", "rarl ≠ sft")
    assert page.matches() == sum(
        right(r) and not right(s) for r, s in zip(rarl[60:], sft[60:], strict=True)
    )
    page.clear()
    assert page.matches() == 105
    page.choose("type", "closed")
    assert page.matches() == sum(p.example.answer_type == "closed" for p in rarl)
    page.choose("outcome", "right")
    assert page.matches() == sum(p.example.answer_type == "closed" and right(p) for p in rarl)
    assert page.text("#match-count").startswith(f"{page.matches()} of 105 examples match")
    assert page.show_all() == page.matches()


def test_search_reads_questions_and_replies(
    browser: webdriver.Chrome, path: Path, comparison: Path
) -> None:
    page = Page(browser, path)
    asked = [*replies(comparison, "sft-0", "seen"), *replies(comparison, "sft-0", "unseen")]
    question = asked[0].example.question
    page.search(question.upper())
    assert page.matches() == sum(p.example.question == question for p in asked) > 0
    page.search("onerror")
    assert page.matches() == 2
    page.search("nowhere to be found")
    assert (page.matches(), page.show_all()) == (0, 0)
    assert page.text("#match-count") == "0 of 105 examples match"


def test_hostile_text_is_shown_and_does_nothing(browser: webdriver.Chrome, path: Path) -> None:
    page = Page(browser, path)
    page.search("onerror")
    page.show_all()
    shown = [
        e.get_property("textContent")
        for e in browser.find_elements(By.CSS_SELECTOR, ".reply .raw .text")
    ]
    assert shown == [HOSTILE, HOSTILE]
    assert HOSTILE in page.text(".reply:has(.raw) p:last-child")
    assert "This judge is unfit for rewards: position: 9 points <b>apart</b>" in page.text(
        "header .warning"
    )
    smuggled = "img[src=x], .warning b, #examples-data + :not(script)"
    assert page.run(f"return document.querySelectorAll('{smuggled}').length") == 0
    assert browser.title == f"{path.parent.name} – RARL report"
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_fits_its_width_and_fetches_nothing(
    browser: webdriver.Chrome, path: Path, width: int
) -> None:
    page = Page(browser, path, width)
    page.show_all()
    page.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.run("return document.documentElement.scrollWidth") <= width
    assert page.run("return [...document.images].every((image) => image.alt)")
    assert page.requests() == []
    assert browser.get_log("browser") == []


CONTRASTS = """
const channel = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const parse = (text) => text.match(/[\\d.]+/g).map(Number);
const weights = [0.2126, 0.7152, 0.0722];
const light = (c) => weights.reduce((sum, w, i) => sum + w * channel(c[i] / 255), 0);
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] > 0.9) return c;
  }
  return [255, 255, 255];
};
return [...document.body.querySelectorAll('*:not(script):not(noscript):not(svg *)')]
  .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()))
  .map((e) => {
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))];
    return [e.className + ' ' + e.tagName, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
  })
  .filter(([, ratio]) => ratio < 4.5);
"""


def test_text_stands_out_and_controls_have_labels(browser: webdriver.Chrome, path: Path) -> None:
    page = Page(browser, path)
    assert page.run(CONTRASTS) == []
    unlabelled = (
        "[...document.querySelectorAll('select, input')].filter((e) => !e.labels.length).length"
    )
    assert page.run(f"return {unlabelled}") == 0
    assert (
        page.run("return document.querySelectorAll('svg[role=img]:not([aria-label])').length") == 0
    )
    assert page.run(
        "return new Set([...document.querySelectorAll('[id]')].map((e) => e.id)).size"
    ) == page.run("return document.querySelectorAll('[id]').length")
    levels = page.run(
        "return [...document.querySelectorAll('h1, h2, h3, h4')].map((e) => Number(e.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_on_paper_there_are_no_filters_and_all_is_unfolded(
    browser: webdriver.Chrome, path: Path
) -> None:
    page = Page(browser, path)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    page.run("window.dispatchEvent(new Event('beforeprint'))")
    assert page.run("return document.querySelectorAll('details:not([open])').length") == 0
    assert page.run("return getComputedStyle(document.getElementById('filters')).display") == "none"
    page.run("window.dispatchEvent(new Event('afterprint'))")
    assert page.run("return document.querySelectorAll('details[open]').length") == 0
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@pytest.mark.parametrize("width", [390, 1200])
def test_the_worst_group_is_seen_at_once(
    browser: webdriver.Chrome, tmp_path: Path, width: int
) -> None:
    """The sentence, the chart with one red line, and the grey group are within one screen."""
    run = write_sites(tmp_path / "mine")
    config = run.config.read_text()
    run.config.write_text(config.replace("by: []", "by: [site]"))
    page = Page(browser, write_report(run.path), width)
    page.run("document.querySelector('nav a[href=\"#groups\"]').click()")
    assert page.text("#groups .finding strong").startswith("By site, Lakeside is worst, by more")
    find = "(s) => { const r = document.querySelector(s).getBoundingClientRect(); return [r.top, "
    find += "r.bottom]; }"
    places = page.run(f"return ['.finding.bad', '#groups .chart svg'].map({find})")
    assert all(top >= 0 and bottom <= 900 for top, bottom in places)
    red = "[...document.querySelectorAll('#groups .chart svg [style*=\"#a12d2d\"]')].length"
    assert page.run(f"return {red}") > 0
    assert page.text("#groups tr.unranked th").split()[0] == "Harbour"
    assert page.run("return document.documentElement.scrollWidth") <= width
    assert page.run(CONTRASTS) == []
    assert browser.get_log("browser") == []
