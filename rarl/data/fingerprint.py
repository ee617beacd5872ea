"""What makes two images the same or nearly so, and two questions twins.

Same: equal bytes. Nearly the same: a 256-bit perceptual hash (imagehash's phash: the signs of the low frequencies) that
differs in at most NEAR bits. That finds copies that were encoded again, resized, brightened or windowed a little. It
does not find copies that were cropped by more than about one percent, turned or mirrored.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

HASH_SIDE = 16  # bits per side of the hash
REDUCED_SIDE = 256  # pixels, at least, of the shorter side; the hash itself looks at 64
NEAR = 32  # bits of 256. Over VQA-RAD, copies differ in up to 20, different images in at least 70; see docs/data.md
CHUNK = 4 << 20  # pairs compared at once, to bound memory


@dataclass(frozen=True)
class ImagePrint:
    """`content` is equal for equal bytes; `look` holds the 256 bits, shape (4,) uint64."""

    content: str
    look: NDArray[np.uint64]


def content_id(encoded: bytes) -> str:
    return hashlib.sha256(encoded).hexdigest()[:16]


def image_print(encoded: bytes, picture: Image.Image) -> ImagePrint:
    small = picture.reduce(max(1, min(picture.size) // REDUCED_SIDE)).convert("L")  # faster, and the hash sees no more
    bits = imagehash.phash(small, hash_size=HASH_SIDE).hash.ravel()
    return ImagePrint(content_id(encoded), np.packbits(bits).view(np.uint64).copy())


def text_key(text: str) -> str:
    """Equal for texts that differ only in case, punctuation, blanks and Unicode form."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


@dataclass
class Side:
    """One split or data set as the checks see it: a row of it is a question about one of its images."""

    name: str
    rows: list[tuple[int, str]] = field(default_factory=list)  # (image, key of question, answer and options)
    looks: list[NDArray[np.uint64]] = field(default_factory=list)  # by image
    images: dict[str, int] = field(default_factory=dict)  # content → image

    def add(self, image: ImagePrint, question: str, answer: str) -> None:
        number = self.images.setdefault(image.content, len(self.images))
        if number == len(self.looks):
            self.looks.append(image.look)
        self.rows.append((number, f"{text_key(question)}\n{text_key(answer)}"))

    def part(self, name: str, rows: Iterable[int]) -> Side:
        """A side of some of the rows."""
        contents = list(self.images)
        side = Side(name)
        for row in rows:
            image, key = self.rows[row]
            number = side.images.setdefault(contents[image], len(side.images))
            if number == len(side.looks):
                side.looks.append(self.looks[image])
            side.rows.append((number, key))
        return side

    def duplicates(self) -> int:
        """Rows that repeat another one: the same image, question and answer."""
        return len(self.rows) - len(set(self.rows))

    def contradictions(self) -> int:
        """Questions that are asked about the same image more than once, with different answers."""
        answers: dict[tuple[int, str], set[str]] = {}
        for image, key in self.rows:
            question, answer = key.split("\n")
            answers.setdefault((image, question), set()).add(answer)
        return sum(len(found) > 1 for found in answers.values())


def stacked(looks: list[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    return np.stack(looks) if looks else np.zeros((0, 4), np.uint64)


def near_pairs(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> NDArray[np.int64]:
    """All (i, j) with left[i] and right[j] at most NEAR bits apart, shape (pairs, 2); inputs (n, 4) and (m, 4).

    Every pair is compared: exact, and 100,000 images take about a minute.
    """
    found = [np.zeros((0, 2), np.int64)]
    step = max(1, CHUNK // max(1, len(right)))
    for start in range(0, len(left), step):
        part = left[start : start + step]
        distance = np.zeros((len(part), len(right)), np.uint16)
        for word in range(4):
            distance += np.bitwise_count(part[:, None, word] ^ right[None, :, word])
        i, j = np.nonzero(distance <= NEAR)
        found.append(np.stack([i + start, j], axis=1))
    return np.concatenate(found)


def image_groups(looks: NDArray[np.uint64]) -> NDArray[np.int64]:
    """A group number for every image, shape (n,): images that are near, directly or through others, share it."""
    pairs = near_pairs(looks, looks)
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(looks), len(looks)))
    groups: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return groups


@dataclass(frozen=True)
class Leak:
    """What `right` shares with `left`. Images are counted on the right side, as are questions.

    twins: questions with the same or nearly the same image, and the same question and answer.
    same_text: questions whose question and answer are on the left too, about another image: no leak of an image, but
    they can be answered without looking.
    """

    left: str
    right: str
    same_images: list[int]
    near_images: list[int]
    questions: list[int]
    twins: list[int]
    same_text: list[int]

    def is_clean(self) -> bool:
        return not self.same_images and not self.near_images


def find_leak(left: Side, right: Side) -> Leak:
    """Exact over all pairs of images."""
    alike: dict[int, set[int]] = {}  # image on the right → those on the left
    for i, j in near_pairs(stacked(left.looks), stacked(right.looks)):
        alike.setdefault(int(j), set()).add(int(i))
    same = {number for content, number in right.images.items() if content in left.images}
    for content, number in right.images.items():
        if content in left.images:
            alike.setdefault(number, set()).add(left.images[content])
    told: dict[str, set[int]] = {}  # question and answer → images on the left
    for image, key in left.rows:
        told.setdefault(key, set()).add(image)
    questions, twins, same_text = [], [], []
    for row, (image, key) in enumerate(right.rows):
        if image in alike:
            questions.append(row)
        if told.get(key, set()) & alike.get(image, set()):
            twins.append(row)
        elif key in told:
            same_text.append(row)
    near = sorted(set(alike) - same)
    return Leak(left.name, right.name, sorted(same), near, questions, twins, same_text)
