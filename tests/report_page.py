"""A report in a headless Chromium, for its tests."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--disable-dev-shm-usage --force-prefers-reduced-motion"
)


def start_browser(profile: Path) -> webdriver.Chrome:
    """`setup/browser.py` installs what is looked for here."""
    names = ("chromium", "chromium-browser", "google-chrome")
    binary = next((path for path in map(shutil.which, names) if path), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.fail("Chromium or chromedriver is missing: run `python3 setup/browser.py`")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in [*FLAGS.split(), f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver))


class Page:
    """A report in a browser, as somebody uses it."""

    def __init__(self, browser: webdriver.Chrome, path: Path, width: int = 1200) -> None:
        self.browser = browser
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get(path.as_uri())

    def run(self, script: str) -> Any:
        return self.browser.execute_script(script)

    def text(self, selector: str) -> str:
        """As it is in the document, whether in view or not."""
        return str(self.browser.find_element(By.CSS_SELECTOR, selector).get_property("textContent"))

    def matches(self) -> int:
        return int(self.text("#match-count").split(" of ")[0])

    def choose(self, name: str, label: str) -> None:
        Select(self.browser.find_element(By.ID, f"filter-{name}")).select_by_visible_text(label)

    def search(self, text: str) -> None:
        field = self.browser.find_element(By.ID, "filter-text")
        field.clear()
        field.send_keys(text)

    def clear(self) -> None:
        self.browser.find_element(By.CSS_SELECTOR, "#filters button").click()
        time.sleep(0.1)

    def show_all(self) -> int:
        """Presses the button until there is none; returns how many examples are then shown."""
        button = self.browser.find_element(By.ID, "show-more")
        while button.is_displayed():
            button.click()
        return len(self.browser.find_elements(By.CSS_SELECTOR, "#example-list > article"))

    def requests(self) -> list[str]:
        """What was fetched, the page itself and its embedded pictures left out."""
        messages = [
            json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")
        ]
        urls = [
            m["params"]["request"]["url"]
            for m in messages
            if m["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in urls if not url.startswith(("data:", "file:"))]
