"""The page for reviews as a clinician uses it: in a real browser, by keyboard alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from sklearn.metrics import cohen_kappa_score

from rarl.data.parquet import ParquetRows
from rarl.rationales.explain import RATIONALES
from rarl.rationales.marks import agreements, apply_marks, read_marks
from rarl.serving.review.app import build_review
from tests.judge_faults import serving
from tests.report_page import start_browser
from tests.reviewing import HOSTILE, write_rationales

pytestmark = pytest.mark.slow
SECONDS = 60
UNNAMED = """
const controls = document.querySelectorAll('button, textarea, progress, img, [tabindex]');
const named = (e) => e.labels?.length || e.textContent.trim() || e.alt || e.ariaLabel;
return [...controls].filter((e) => !named(e)).map((e) => e.outerHTML);
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: Any) -> Iterator[webdriver.Chrome]:
    started = start_browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.quit()


class ReviewPage:
    """The page of one reviewer in a browser, with nothing but keys."""

    def __init__(self, browser: webdriver.Chrome, url: str, width: int = 1200) -> None:
        self.browser, self.url = browser, url
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get_log("browser")
        browser.get(url)
        self.wait(lambda: self.text("#question") or self.text("#error"))

    def wait(self, condition: Any) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.text("body")
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        found = self.browser.find_elements(By.CSS_SELECTOR, selector)
        return str(found[0].get_property("textContent")) if found else ""

    def place(self) -> int:
        return int(self.text("article h2").split()[1])

    def press(self, *keys: str) -> None:
        ActionChains(self.browser).send_keys(*keys).perform()

    def mark(self, key: str, marked: int) -> None:
        """Presses a key, and waits until so many are marked."""
        self.press(key)
        self.wait(lambda: self.text("header label").startswith(f"{marked} of"))

    def edit(self, added: str, marked: int) -> None:
        self.press("e")
        self.wait(lambda: self.browser.switch_to.active_element.get_attribute("id") == "draft")
        self.press(added)
        keys = ActionChains(self.browser)
        keys.key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()
        self.wait(lambda: self.text("header label").startswith(f"{marked} of"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_rationales(tmp_path / "out")
    return tmp_path / "out"


def test_two_reviewers_by_keyboard_alone(
    browser: webdriver.Chrome, out: Path, tmp_path: Path
) -> None:
    """One marks all, in two sittings, the other some; their marks come back with kappa."""
    with serving(build_review(out, "ann")) as url:
        page = ReviewPage(browser, url)
        assert page.place() == 1
        page.mark("a", 1)
        assert page.place() == 2 and "Accepted number 1" in page.text("#said")
        page.mark("r", 2)
        page.edit(" Seen so.", 3)
        assert page.place() == 4
    # The page is closed and the server gone; nothing is lost.
    with serving(build_review(out, "ann")) as url:
        page = ReviewPage(browser, url)
        assert page.place() == 4 and page.text("header label").startswith("3 of 8")
        page.press(Keys.ARROW_LEFT)
        page.wait(lambda: page.place() == 3)
        assert page.text("#rationale").endswith("Seen so.")
        assert "Edited by you" in page.text("#mark")
        page.press("n")
        page.wait(lambda: page.place() == 4)
        for marked in range(4, 9):
            page.mark("r" if marked == 5 else "a", marked)
        assert "All are marked" in page.text("#done")
        # Another opinion about an earlier one.
        page.press(Keys.ARROW_LEFT)
        page.wait(lambda: page.place() == 7)
        page.press("r")
        page.wait(lambda: "Rejected" in page.text("#mark"))
    with serving(build_review(out, "ben")) as url:
        page = ReviewPage(browser, url)
        assert page.place() == 1 and page.text("#mark") == "", "another's marks are not shown"
        for marked, key in enumerate("arraa", start=1):
            page.mark(key, marked)
    marks = read_marks(out)
    ann = ["accept", "reject", "edit", "accept", "reject", "accept", "reject", "accept"]
    ben = ["accept", "reject", "reject", "accept", "accept"]
    for name, decisions in (("ann", ann), ("ben", ben)):
        assert [one.decision for one in marks[name].values()] == decisions
    (found,) = agreements(marks, ParquetRows(out / RATIONALES))
    assert found.n == 5
    assert found.kappa == pytest.approx(cohen_kappa_score(ann[:5], ben))
    usable = [[one != "reject" for one in own] for own in (ann[:5], ben)]
    assert found.usable_kappa == pytest.approx(cohen_kappa_score(*usable))
    applied = apply_marks(out, tmp_path / "new.parquet")
    assert applied.counts == {"accepted": 4, "edited": 0, "rejected": 4, "not marked": 0}


def test_the_texts_of_others_are_shown_and_not_run(browser: webdriver.Chrome, out: Path) -> None:
    with serving(build_review(out, "ann")) as url:
        page = ReviewPage(browser, f"{url}/#2")
        assert page.place() == 2
        assert HOSTILE in page.text("#rationale")
        assert browser.title == "RARL: review of rationales"
        assert not browser.find_elements(By.CSS_SELECTOR, "article img, article script")
        messages = [one["message"] for one in browser.get_log("browser")]
        assert messages == []


def test_a_draft_is_no_mark_until_it_is_saved(browser: webdriver.Chrome, out: Path) -> None:
    with serving(build_review(out, "ann")) as url:
        page = ReviewPage(browser, url)
        before = page.text("#rationale")
        page.press("e")
        page.wait(lambda: page.browser.find_elements(By.ID, "draft"))
        page.press(" are not shortcuts: a r n z")
        draft = browser.find_element(By.ID, "draft").get_property("value")
        assert str(draft).endswith("a r n z")
        page.press(Keys.ESCAPE)
        page.wait(lambda: page.text("#rationale") == before)
        assert read_marks(out) == {}
        assert page.browser.switch_to.active_element.get_attribute("id") == "edit"


def test_a_zoomed_image_is_moved_by_the_arrows(browser: webdriver.Chrome, out: Path) -> None:
    with serving(build_review(out, "ann")) as url:
        page = ReviewPage(browser, url)
        page.press("z")
        page.wait(lambda: browser.find_elements(By.CSS_SELECTOR, "#frame.zoomed:focus"))
        page.press(Keys.ARROW_RIGHT)
        moved = "return document.querySelector('#frame').scrollLeft"
        page.wait(lambda: browser.execute_script(moved) > 0)
        assert page.place() == 1
        page.press("z", Keys.ARROW_RIGHT)
        page.wait(lambda: page.place() == 2)


def test_a_server_that_is_gone_is_told(browser: webdriver.Chrome, out: Path) -> None:
    with serving(build_review(out, "ann")) as url:
        page = ReviewPage(browser, url)
        page.mark("a", 1)
    page.press("a")
    page.wait(lambda: "cannot be reached" in page.text("#error"))
    assert len(read_marks(out)["ann"]) == 1


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_fits_its_width_and_every_control_is_reached_and_named(
    browser: webdriver.Chrome, out: Path, width: int
) -> None:
    with serving(build_review(out, "ann")) as url:
        page = ReviewPage(browser, url, width)
        page.wait(
            lambda: browser.execute_script("return document.querySelector('#image').complete")
        )
        for _ in range(2):  # as it is, and while a rationale is edited
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            assert browser.execute_script(UNNAMED) == []
            browser.execute_script("document.activeElement.blur()")
            wanted = browser.execute_script(
                "return [...document.querySelectorAll('button, textarea')].map((e) => e.id)"
            )
            reached = set()
            for _ in range(len(wanted) + 4):
                page.press(Keys.TAB)
                reached.add(browser.execute_script("return document.activeElement.id"))
            assert set(wanted) <= reached
            page.press("e")
            page.wait(lambda: browser.find_elements(By.ID, "draft"))
