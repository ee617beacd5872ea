"""Boxes in the report lie where they should, in a real browser: over the part of the picture that
was drawn there, also where the picture was shrunk or cut boxes come from replies."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from selenium import webdriver

from rarl.config import load_config
from rarl.data.images import png_bytes
from rarl.evaluation.measurements import own_measurement
from rarl.evaluation.report import write_report
from rarl.evaluation.report.examples import drawn_boxes
from rarl.replies.boxes import boxes_text, write_boxes
from rarl.samples import Sample
from rarl.schema import Box, Example, Frame
from tests.records import reply_to, write_measurement
from tests.report_page import Page, start_browser
from tests.report_runs import write_run

# (width, height) of the stored pictures: small, large, tall and wide.
SIZES = ((112, 112), (900, 450), (300, 1200), (64, 48))
RECTS = "return [...document.querySelectorAll(arguments[0])].map((one) => {const r = "
RECTS += (
    "one.getBoundingClientRect(); return [r.left + scrollX, r.top + scrollY, r.width, r.height]})"
)

# Pictures further down are loaded when they come into view.
LOADED = """
const all = [...document.querySelectorAll('.picture img')];
all.forEach((one) => { one.loading = 'eager'; });
Promise.all(all.map((one) => one.decode())).then(() => arguments[0]());
"""


def pictured(number: int, size: tuple[int, int]) -> Example:
    """A black picture with a white rectangle, and its box."""
    width, height = size
    box = Box("white patch", width * 0.25, height * 0.5, width * 0.75, height * 0.75)
    image = Image.new("RGB", size)
    corners = (box.x1, box.y1, box.x2 - 1, box.y2 - 1)
    ImageDraw.Draw(image).rectangle(corners, fill="white")
    name = f"patch-{number}"
    question = "Where is the white patch?"
    return Example(
        name,
        (png_bytes(image),),
        name,
        question,
        boxes_text([box]),
        "boxes",
        boxes=(box,),
        dataset="seen",
    )


def pointed(example: Example, frame: Frame, shift: float) -> Sample:
    """A reply whose box is the true one, moved down by a share of the height."""
    assert example.boxes is not None
    moved = [
        replace(one, y1=one.y1 + shift * frame.height, y2=one.y2 + shift * frame.height)
        for one in example.boxes
    ]
    asked = replace(example, images=())
    sample = reply_to(asked, write_boxes(moved, frame), {"correct": not shift, "reasoning": 0.5})
    return replace(sample, prompt=replace(sample.prompt, frame=frame))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    started = start_browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.quit()


@pytest.mark.slow
def test_boxes_lie_on_what_they_name(browser: webdriver.Chrome, tmp_path: Path) -> None:
    examples = [pictured(*pair) for pair in enumerate(SIZES)]
    run = write_run(tmp_path / "run", {"seen": examples}, 0.5, 0, "data.allow_same_files=true")
    key = own_measurement(load_config(run.config), "trained", "seen")
    frames = [Frame("qwen2_vl", *size, 112, 112) for size in SIZES]
    pairs = zip(examples, frames, strict=True)
    write_measurement(tmp_path / "run/evaluation", key, [pointed(e, f, 0.1) for e, f in pairs])
    page = Page(browser, write_report(run.path))
    page.show_all()
    page.browser.execute_async_script(LOADED)
    pictures = page.browser.execute_script(RECTS, ".picture img")
    known = page.browser.execute_script(RECTS, ".boxes .known")
    named = page.browser.execute_script(RECTS, ".boxes .named")
    assert len(pictures) == len(known) == len(named) == len(SIZES)
    for (left, top, width, height), solid, dashed in zip(pictures, known, named, strict=True):
        assert width > 20
        wanted = [left + width / 4, top + height / 2, width / 2, height / 4]
        assert solid == pytest.approx(wanted, abs=3)  # with the line's own width
        lower = [wanted[0], wanted[1] + height / 10, *wanted[2:]]
        assert dashed == pytest.approx(lower, abs=3)
    for place, rect in enumerate(known):
        assert is_white_within(page, place, rect)


def is_white_within(page: Page, place: int, rect: list[float]) -> bool:
    """Says whether the screenshot is white in the middle of a box and black above it."""
    script = "document.querySelectorAll('.picture')[arguments[0]].scrollIntoView({block: 'center'})"
    page.browser.execute_script(script, place)
    page.browser.execute_script(
        "document.querySelectorAll('.boxes .named').forEach(o => o.remove())"
    )
    scrolled = page.browser.execute_script("return [scrollX, scrollY]")
    shot = Image.open(io.BytesIO(page.browser.get_screenshot_as_png())).convert("L")
    pixels = np.asarray(shot, dtype=float)
    left, top = rect[0] - scrolled[0], rect[1] - scrolled[1]
    column = int(left + rect[2] / 2)
    inside = pixels[int(top + rect[3] / 2), column]
    above = pixels[int(top - rect[3] / 2), column]
    return bool(inside > 200 and above < 60)


def test_only_what_can_be_drawn_is_drawn() -> None:
    frame = Frame("qwen2_vl", 200, 100, 112, 112)
    boxes: list[Any] = [
        Box("a", 50, 25, 100, 75),
        Box("over the edge", -50, 50, 500, 900),
        Box("outside", 300, 300, 400, 400),
        Box("inside out", 50, 50, 10, 10),
        Box("no number", float("nan"), 0, 1, 1),
    ]
    assert drawn_boxes(boxes, frame) == [
        ["a", 0.25, 0.25, 0.25, 0.5],
        ["over the edge", 0.0, 0.5, 1.0, 0.5],
    ]
    assert drawn_boxes(boxes, None) == drawn_boxes(None, frame) == []
