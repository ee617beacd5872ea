"""The page as somebody uses it, in a real browser against the running service."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from rarl.schema import Example
from rarl.tiny.follow_up import draw_follow_ups, draw_in_words
from tests.pictures import picture
from tests.report_page import start_browser
from tests.serving.hostile_files import dicom
from tests.serving.service import Service

pytestmark = pytest.mark.slow
SECONDS = 90

DROP = """
const transfer = new DataTransfer();
for (const [bytes, name] of arguments[0]) {
  transfer.items.add(new File([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], name));
}
const target = document.querySelector('.drop');
for (const type of ['dragover', 'drop']) {
  const options = { dataTransfer: transfer, bubbles: true, cancelable: true };
  target.dispatchEvent(new DragEvent(type, options));
}
"""
WATCH = """
window.seen = [];
new MutationObserver(() => {
  const text = document.querySelector('.thinking')?.textContent ?? '';
  const answered = Boolean(document.querySelector('.answer'));
  window.seen.push([text.length, answered]);
}).observe(document.body, { subtree: true, childList: true, characterData: true });
"""


BODIES = """
window.bodies = [];
const before = window.fetch;
window.fetch = (url, options) => {
  if (url.endsWith('/answer')) window.bodies.push(options.body);
  return before(url, options);
};
"""


class AskingPage:
    """The page in a browser."""

    def __init__(self, browser: webdriver.Chrome, service: Service, width: int = 1200) -> None:
        self.browser, self.service = browser, service
        metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        # of the same origin, and without a script that could write meanwhile
        browser.get(f"{service.url}/page.css")
        browser.execute_script("sessionStorage.clear(); localStorage.clear()")
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get(service.url)

    def find(self, selector: str) -> Any:
        """Waits for it."""
        deadline = time.monotonic() + SECONDS
        while not (found := self.browser.find_elements(By.CSS_SELECTOR, selector)):
            assert time.monotonic() < deadline, self.browser.find_element(By.TAG_NAME, "body").text
            time.sleep(0.05)
        return found[0]

    def texts(self, selector: str) -> list[str]:
        return [one.text for one in self.browser.find_elements(By.CSS_SELECTOR, selector)]

    def sign_in(self) -> AskingPage:
        self.find("#key").send_keys(self.service.key, Keys.ENTER)
        self.find("#ask")
        return self

    def drop(self, data: bytes, name: str) -> None:
        self.drop_all({name: data})

    def drop_all(self, files: dict[str, bytes]) -> None:
        """At once, by their names."""
        held = [(base64.b64encode(data).decode(), name) for name, data in files.items()]
        self.browser.execute_script(DROP, held)

    def shown(self) -> list[str]:
        """What is said of the images, in order."""
        found = self.browser.find_elements(By.CSS_SELECTOR, ".pictures img")
        return [str(one.get_attribute("alt")) for one in found]

    def wait_for(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not what():
            assert time.monotonic() < deadline, (self.shown(), self.texts("#error"))
            time.sleep(0.05)

    def press(self, *keys: str) -> str:
        """Returns what has the focus then, by the name that a screen reader says."""
        ActionChains(self.browser).send_keys(*keys).perform()
        name = self.browser.execute_script(
            "return document.activeElement.ariaLabel ?? document.activeElement.id"
        )
        return str(name)

    def asked(self) -> Any:
        """The last request to `/v1/answer` since BODIES was run."""
        return json.loads(self.browser.execute_script("return window.bodies")[-1])

    def choose(self, name: str, label: str) -> None:
        Select(self.find(f"#{name}")).select_by_visible_text(label)

    def ask(self, example: Example) -> None:
        self.find("#question").send_keys(example.question)
        self.find("#options").send_keys("\n".join(example.options or ("yes", "no")))
        self.find("#ask button[type=submit]").click()

    def wait_for_replies(self, count: int) -> None:
        deadline = time.monotonic() + SECONDS
        while len(self.texts(".reply .answer")) + len(self.texts(".reply .error")) < count:
            assert time.monotonic() < deadline, self.texts("main")
            time.sleep(0.1)

    def requests(self) -> list[str]:
        entries = [
            json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")
        ]
        urls = [
            m["params"]["request"]["url"]
            for m in entries
            if m["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in urls if not url.startswith(("data:", "blob:", "chrome:"))]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    started = start_browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.quit()


def test_an_image_is_dropped_and_two_adapters_answer_as_they_think(
    browser: webdriver.Chrome, service: Service, examples: list[Example]
) -> None:
    page = AskingPage(browser, service).sign_in()
    assert "Not for diagnosis" in page.find(".notice").text
    page.drop(examples[0].images[0], "phantom.png")
    page.find(".pictures img")
    assert page.shown() == ["Image 1 of 1: phantom.png"]
    page.choose("first", "base")
    page.choose("second", "second")
    page.find("#reference").send_keys(examples[0].answer)
    browser.execute_script(WATCH)
    page.ask(examples[0])
    page.wait_for_replies(2)
    assert page.texts(".reply > header") == ["base", "second"]
    assert page.texts(".reply .error") == []
    assert all(text.startswith("Answer: ") for text in page.texts(".answer"))
    assert all("of 5 samples agree" in text for text in page.texts(".figures"))
    assert "second@" in page.texts(".figures")[1]
    assert all("correctness" in text and "of 3" in text for text in page.texts(".verdict"))
    assert len(page.texts(".verdict")) == 2
    seen = [
        length for length, answered in browser.execute_script("return window.seen") if not answered
    ]
    assert len(set(seen)) >= 4, "the thinking was to be seen as it grew"
    assert examples[0].question in page.texts(".history li")[0]
    assert [url for url in page.requests() if not url.startswith(service.url)] == []
    messages = [entry["message"] for entry in browser.get_log("browser")]
    assert [one for one in messages if "401" not in one and "favicon" not in one] == []


def test_a_new_image_takes_the_answers_about_the_old_one_away(
    browser: webdriver.Chrome, service: Service, examples: list[Example]
) -> None:
    """A TIFF this time. Its options are one to a line, and one of them has a comma."""
    page = AskingPage(browser, service).sign_in()
    file = io.BytesIO()
    Image.open(io.BytesIO(examples[0].images[0])).save(file, "TIFF")
    page.drop(file.getvalue(), "phantom.tiff")
    page.find(".pictures img")
    page.choose("first", "base")
    page.find("#options").send_keys("left, or right\nnone")
    page.find("#question").send_keys("Where is the lesion?")
    browser.execute_script(BODIES)
    page.find("#ask button[type=submit]").click()
    page.wait_for_replies(1)
    assert page.asked()["options"] == ["left, or right", "none"]
    assert len(page.asked()["images"]) == 1 and "image_labels" not in page.asked()
    page.drop(examples[1].images[0], "other.png")
    page.find(".pictures img[alt$='other.png']")
    assert page.texts(".reply") == []


def test_bad_files_are_explained(
    browser: webdriver.Chrome, service: Service, examples: list[Example]
) -> None:
    page = AskingPage(browser, service).sign_in()
    page.drop(b"this is no picture at all", "notes.png")
    assert (
        "notes.png" in page.find("#error").text
        and "neither PNG, nor JPEG, nor TIFF, nor DICOM" in page.find("#error").text
    )
    page.drop(examples[0].images[0][:300], "half.png")
    deadline = time.monotonic() + SECONDS
    while "half.png" not in page.find("#error").text:
        assert time.monotonic() < deadline
    assert "is the file complete?" in page.find("#error").text
    assert page.shown() == []
    # One bad file among others is left out, and named.
    files = {"good.png": examples[0].images[0], "notes.png": b"no picture"}
    page.drop_all(files | {"also good.png": examples[1].images[0]})
    page.wait_for(lambda: len(page.shown()) == 2)
    assert page.shown()[1] == "Image 2 of 2: also good.png"
    assert "notes.png" in page.find("#error").text
    page.drop(examples[2].images[0], "third.png")
    page.wait_for(lambda: len(page.shown()) == 3)
    assert page.texts("#error") == []
    page.drop_all({f"{number}.png": examples[0].images[0] for number in range(14)})
    page.wait_for(lambda: len(page.shown()) == 16)
    assert page.find("#error").text == "13.png: a question may have 16 images here"


def test_dicom_is_shown_and_answered(
    browser: webdriver.Chrome, service: Service, tmp_path: Path
) -> None:
    """By the file chooser this time."""
    path = tmp_path / "image.dcm"
    path.write_bytes(dicom())
    page = AskingPage(browser, service).sign_in()
    page.find("#file").send_keys(str(path))
    assert (
        browser.execute_script(
            "return document.querySelector('.pictures img').decode().then(() => true)"
        )
        if page.find(".pictures img")
        else False
    )
    page.choose("first", "base")
    page.find("#question").send_keys("Is there a lesion?")
    page.find("#ask button[type=submit]").click()
    page.wait_for_replies(1)


def test_a_wrong_key_is_said_and_the_right_one_lets_in(
    browser: webdriver.Chrome, service: Service
) -> None:
    page = AskingPage(browser, service)
    page.find("#key").send_keys("wrong", Keys.ENTER)
    assert "send the API key" in page.find("#error").text
    page.find("#key").clear()
    page.sign_in()
    assert page.texts("#error") == []


def test_all_of_it_by_keyboard(
    browser: webdriver.Chrome, service: Service, examples: list[Example]
) -> None:
    """Tab reaches every control in the order in which they are shown, and Enter asks."""
    page = AskingPage(browser, service).sign_in()
    page.drop(examples[2].images[0], "phantom.png")
    page.find(".pictures img")
    browser.execute_script("document.activeElement.blur()")
    about = "image 1 of 1, phantom.png"
    controls = [
        "file",
        f"Label of {about}",
        f"Move to the left: {about}",
        f"Move to the right: {about}",
        f"Remove {about}",
        *("question", "options", "reference", "boxes", "look", "first", "second", "samples"),
    ]
    assert [page.press(Keys.TAB) for _ in controls] == controls
    page.find("#question").send_keys(examples[2].question, Keys.ENTER)
    page.wait_for_replies(1)


def test_several_images_are_ordered_and_removed_by_keyboard(
    browser: webdriver.Chrome, service: Service
) -> None:
    """They are dropped at once, stand side by side as they were dropped, and are asked in the order
    that they have then, each behind its label."""
    example = draw_follow_ups(1, 0, "test")[0]
    page = AskingPage(browser, service).sign_in()
    files = {"a.png": example.images[0], "b.png": example.images[1], "c.png": picture(7, "PNG")}
    page.drop_all(files)
    page.wait_for(lambda: len(page.shown()) == 3)
    assert page.shown() == [f"Image {n} of 3: {name}" for n, name in enumerate(files, start=1)]
    places = browser.execute_script(
        "return [...document.querySelectorAll('.pictures img')]"
        ".map((e) => e.getBoundingClientRect())"
    )
    assert all(left["right"] <= right["left"] for left, right in pairwise(places)), places
    browser.execute_script("document.activeElement.blur()")
    for _ in range(3):
        page.press(Keys.TAB)
    # Nothing is to the left of the first; the focus goes with the image that is moved.
    assert page.press(Keys.ENTER) == "Move to the left: image 1 of 3, a.png"
    assert page.press(Keys.ARROW_RIGHT) == "Move to the left: image 2 of 3, a.png"
    assert page.press(Keys.ARROW_RIGHT) == "Move to the left: image 3 of 3, a.png"
    assert page.press(Keys.SPACE) == "Move to the left: image 2 of 3, a.png"
    assert page.shown() == ["Image 1 of 3: b.png", "Image 2 of 3: a.png", "Image 3 of 3: c.png"]
    assert page.texts(".said") == ["a.png is image 2 of 3 now."]
    for _ in range(6):
        page.press(Keys.TAB)
    assert page.press(Keys.ENTER) == "Remove image 2 of 2, a.png"
    assert page.shown() == ["Image 1 of 2: b.png", "Image 2 of 2: a.png"]
    page.choose("first", "base")
    browser.execute_script(BODIES)
    labels = browser.find_elements(By.CSS_SELECTOR, ".pictures input")
    labels[0].send_keys("Prior")
    page.find("#question").send_keys(example.question, Keys.ENTER)
    assert page.find("#error").text == "Label each of the images, or none."
    labels[1].send_keys("New")
    page.find("#question").send_keys(Keys.ENTER)
    page.wait_for_replies(1)
    # The base has never seen two images, and may say no answer.
    assert len(page.texts(".reply")) == 1 and page.texts("#error") == []
    sent = [base64.b64decode(image) for image in page.asked()["images"]]
    assert sent == [files["b.png"], files["a.png"]]
    assert page.asked()["image_labels"] == ["Prior", "New"]


def test_a_question_without_an_image_is_answered(
    browser: webdriver.Chrome, service: Service
) -> None:
    example = draw_in_words(1, 0, "test")[0]
    page = AskingPage(browser, service).sign_in()
    page.choose("first", "base")
    browser.execute_script(BODIES)
    page.find("#question").send_keys(example.question.replace("\n", " "))
    page.find("#ask button[type=submit]").click()
    page.wait_for_replies(1)
    assert page.texts(".reply .answer") and page.texts("#error") == []
    assert page.asked()["images"] == []


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_fits_its_width_and_its_controls_have_labels(
    browser: webdriver.Chrome, service: Service, width: int
) -> None:
    page = AskingPage(browser, service, width).sign_in()
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    page.drop_all({f"{number}.png": picture(number, "PNG") for number in range(3)})
    page.wait_for(lambda: len(page.shown()) == 3)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    unlabelled = (
        "return [...document.querySelectorAll('select, input, textarea, button')]"
        ".filter((e) => !e.labels.length && !e.ariaLabel && !e.textContent).length"
    )
    assert browser.execute_script(unlabelled) == 0
    tops = browser.execute_script(
        "return [...document.querySelectorAll('#ask label input, #ask textarea, #ask select')]"
        ".map((e) => e.getBoundingClientRect().top)"
    )
    assert all(b >= a - 60 for a, b in pairwise(tops))
    assert page.find(".notice").is_displayed()
