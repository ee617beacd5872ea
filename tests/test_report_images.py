"""All images of a question in the report, in a real browser: side by side, in order, each with its
label; and a question of text, which has none."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium import webdriver

from rarl.config import load_config
from rarl.data.images import png_bytes
from rarl.data.parquet import write_examples
from rarl.evaluation.report import write_report
from rarl.schema import Example
from tests.report_page import Page, start_browser
from tests.report_runs import draw_data, write_run

pytestmark = pytest.mark.slow
COLOURS = {"red": (220, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 220)}
# (colour in the middle, label, alternative text) of each picture that is shown for a question
SHOWN = """
const [question, done] = [arguments[0], arguments[1]];
const card = [...document.querySelectorAll('.example')]
  .find((one) => one.querySelector('h3').textContent === question);
const pictures = [...card.querySelectorAll('.picture figure')];
pictures.forEach((one) => { one.querySelector('img').loading = 'eager'; });
card.scrollIntoView();
Promise.all(pictures.map(async (one) => {
  const image = one.querySelector('img');
  await image.decode();
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext('2d');
  context.drawImage(image, 0, 0);
  const at = [Math.floor(canvas.width / 2), Math.floor(canvas.height / 2), 1, 1];
  const box = image.getBoundingClientRect();
  return {
    colour: [...context.getImageData(...at).data].slice(0, 3), alt: image.alt, left: box.left,
    right: box.right, top: box.top, caption: one.querySelector('figcaption')?.textContent ?? '',
  };
})).then((found) => done({ pictures: found, chips: card.querySelector('.chips').textContent,
  missing: card.querySelector('.missing')?.textContent ?? '' }));
"""


def plain(colour: str, size: tuple[int, int] = (120, 90)) -> bytes:
    return png_bytes(Image.new("RGB", size, COLOURS[colour]))


def asked(number: int, colours: list[str], **fields: Any) -> Example:
    like = draw_data()["seen"][number]
    return replace(
        like,
        id=f"q{number}",
        image_id=f"i{number}",
        images=tuple(map(plain, colours)),
        question=f"Question {number}?",
        boxes=None,
        **fields,
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    examples = [
        asked(0, ["red", "green"], image_labels=("Prior", "New <b>one</b>")),
        asked(1, ["blue", "red", "green"]),
        asked(2, ["green"]),
        asked(3, []),
        asked(4, ["red", "blue"]),
    ]
    run = write_run(folder / "run", {"seen": examples}, 0.5, 0, "data.allow_same_files=true")
    # What can be read no more is said to be so: one picture of two was spoilt meanwhile.
    spoilt = replace(examples[4], images=(examples[4].images[0], b"no picture"))
    write_examples(Path(str(load_config(run.config).data.train)), [*examples[:4], spoilt])
    return write_report(run.path)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    started = start_browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.quit()


def shown(page: Page, number: int) -> Any:
    return page.browser.execute_async_script(SHOWN, f"Question {number}?")


def colours(found: Any) -> list[str]:
    """The names of the colours that are nearest: they were compressed."""

    def distance(name: str, colour: list[int]) -> int:
        return sum(abs(a - b) for a, b in zip(COLOURS[name], colour, strict=True))

    shades = [one["colour"] for one in found["pictures"]]
    return [min(COLOURS, key=lambda name: distance(name, shade)) for shade in shades]


@pytest.mark.parametrize("width", [390, 1200])
def test_all_images_stand_in_order_with_their_labels(
    browser: webdriver.Chrome, path: Path, width: int
) -> None:
    page = Page(browser, path, width)
    labelled, three, one, none, spoilt = (shown(page, number) for number in range(5))
    assert colours(labelled) == ["red", "green"]
    assert [each["caption"] for each in labelled["pictures"]] == ["Prior", "New <b>one</b>"]
    assert labelled["pictures"][0]["alt"].startswith("Image 1 of 2 of i0, Prior")
    assert colours(three) == ["blue", "red", "green"]
    assert [each["caption"] for each in three["pictures"]] == ["1", "2", "3"]
    if width == 1200:
        first, second, third = three["pictures"]
        assert first["top"] == second["top"] == third["top"]
        assert first["right"] < second["left"] < second["right"] < third["left"]
    assert colours(one) == ["green"] and one["pictures"][0]["caption"] == ""
    assert "no image" not in one["chips"]
    assert none["pictures"] == [] and "no image" in none["chips"] and not none["missing"]
    assert spoilt["pictures"] == [] and "not to be had" in spoilt["missing"]
    page.search("new <b>one")
    assert page.matches() == 1
    assert page.run("return document.documentElement.scrollWidth") <= width
    assert page.run("return [...document.images].every((image) => image.alt)")
    assert page.requests() == [] and browser.get_log("browser") == []
    image = Image.open(io.BytesIO(browser.get_screenshot_as_png()))
    assert image.width == width
