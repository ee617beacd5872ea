"""What is near and what is a twin, against plain loops: looks of images and keys of texts."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rarl.prepare.fingerprint import (
    NEAR,
    Side,
    find_leak,
    image_groups,
    image_print,
    near_pairs,
    text_key,
)
from tests.pictures import make_pictures, reencoded


def pairs_of(left: Any, right: Any) -> list[tuple[int, int]]:
    return [
        (int(i), int(j))
        for lefts, rights in near_pairs(left, right)
        for i, j in zip(lefts, rights, strict=True)
    ]


def test_near_pairs_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (40, 256), dtype=np.uint8)
    for i in range(20):  # pairs that differ in 13 to 51 bits
        bits[20 + i] = bits[i]
        bits[20 + i, rng.permutation(256)[: 13 + 2 * i]] ^= 1
    looks = np.packbits(bits, axis=1).view(np.uint64)
    found = set(pairs_of(looks, looks))
    assert found == {
        (i, j) for i in range(40) for j in range(40) if (bits[i] != bits[j]).sum() <= NEAR
    }
    assert {(0, 20), (9, 29)} <= found
    assert (10, 30) not in found
    groups = image_groups(looks)
    assert groups[0] == groups[20]
    assert len(set(groups.tolist())) == 30


@pytest.mark.parametrize("kind", ["made", pytest.param("real", marks=pytest.mark.real_data)])
def test_copies_are_near_and_different_radiographs_are_not(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "made":
        make_pictures(tmp_path / "images", 24)
    folder = tmp_path if kind == "made" else request.getfixturevalue("vqa_rad")
    files = sorted((folder / "images").iterdir())[:24]
    originals = [Image.open(path).convert("RGB") for path in files]
    looks = np.stack([image_print(b"", image).look for image in originals])
    assert len(pairs_of(looks, looks)) == len(files)  # each with itself alone
    copies = np.stack(
        [image_print(b"", Image.open(io.BytesIO(reencoded(p))).convert("RGB")).look for p in files]
    )
    assert pairs_of(looks, copies) == [(i, i) for i in range(len(files))]


def test_many_images_that_are_alike_take_no_memory_by_the_pair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All pairs of them as numbers would take 16 bytes each."""
    monkeypatch.setattr("rarl.prepare.fingerprint.CHUNK", 1 << 12)
    looks = np.zeros((600, 4), np.uint64)
    looks[::3] = ~np.uint64(0)
    side = Side("a", images={str(i): i for i in range(len(looks))}, looks=list(looks))
    side.rows = [((i,), f"which?\n{i % 3}") for i in range(len(looks))]
    tracemalloc.start()
    groups, leak = image_groups(looks), find_leak(side, side)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert groups.tolist() == [0, 1, 1] * 200
    assert (len(leak.twins), len(leak.questions), leak.same_text, leak.near_images) == (
        600,
        600,
        [],
        [],
    )
    assert peak < 16 * len(looks) ** 2 / 4, peak


def test_twins_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**63, (6, 4)).astype(np.uint64)
    left, right = (
        Side(name, looks=list(base[rng.integers(0, 6, 20)])) for name in ("left", "right")
    )
    for side in (left, right):
        side.images = {f"{side.name}-{i}": i for i in range(20)}
        side.rows = [
            ((image,), f"q\n{key}") for image, key in rng.integers(0, (20, 9), (60, 2)).tolist()
        ]
    leak = find_leak(left, right)
    known = {(left.looks[i].tobytes(), key) for (i,), key in left.rows}
    twins = [
        row
        for row, ((i,), key) in enumerate(right.rows)
        if (right.looks[i].tobytes(), key) in known
    ]
    texts = {key for _, key in left.rows}
    assert leak.twins == twins
    assert leak.same_text == [
        r for r, (_, key) in enumerate(right.rows) if key in texts and r not in twins
    ]


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("+", "-", False),
        ("<5", ">5", False),
        ("0.5 cm", "5 cm", False),
        ("-5", "5", False),
        ("\N{MINUS SIGN}5", "-5", True),
        ("HER2+", "HER2-", False),
        ("50 %", "50%", True),
        ("The left lung.", "the  LEFT lung", True),
        ("Chest X-ray", "chest x ray", True),
        ("MR - Flair", "MR Flair", True),
        ("T2-weighted, axial", "T2 weighted axial?!", True),
    ],
)
def test_signs_count_and_punctuation_does_not(one: str, other: str, equal: bool) -> None:
    assert (text_key(one) == text_key(other)) == equal
