"""What makes two images the same (equal bytes) or nearly so (a 256-bit perceptual hash, imagehash's
phash, that differs in at most NEAR bits), and two questions twins. docs/data.md tells which copies
are found."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rarl.data.check import which_image
from rarl.data.images import BadImage, decode_image, require_content
from rarl.prepare.files import Fault
from rarl.replies.grading import is_yes_no
from rarl.replies.words import yes_or_no

HASH_SIDE = 16  # bits per side of the hash
REDUCED_SIDE = 256  # pixels, at least, of the shorter side; the hash itself looks at 64
# Bits of 256. Over VQA-RAD, copies differ in up to 22, different images in at least 70.
NEAR = 32
CHUNK = 1 << 20  # pairs compared at once, to bound memory


@dataclass(frozen=True)
class ImagePrint:
    """`content` is equal for equal bytes; `look` holds the 256 bits, shape (4,) uint64."""

    content: str
    look: NDArray[np.uint64]


def content_id(encoded: bytes) -> str:
    return hashlib.sha256(encoded).hexdigest()[:16]


def content_of(prints: Sequence[ImagePrint]) -> str:
    """Returns what is equal for equal images in the same order."""
    if len(prints) == 1:
        return prints[0].content
    return content_id("\n".join(one.content for one in prints).encode())


def image_print(encoded: bytes, picture: Image.Image) -> ImagePrint:
    # Reducing first is faster, and the hash sees no more.
    small = picture.reduce(max(1, min(picture.size) // REDUCED_SIDE)).convert("L")
    bits = imagehash.phash(small, hash_size=HASH_SIDE).hash.ravel()
    return ImagePrint(content_id(encoded), np.packbits(bits).view(np.uint64).copy())


class SeenImages:
    """Remembers the images that it has seen, since many questions share one."""

    def __init__(self) -> None:
        self.seen: dict[str, ImagePrint | str] = {}  # content → print, or what is wrong with it

    def look_at(self, encoded: bytes) -> ImagePrint:
        """Returns an image's fingerprint. Raises Fault if it cannot be decoded or shows nothing."""
        content = content_id(encoded)
        known = self.seen.get(content)
        if known is None:
            try:
                picture = decode_image(encoded)
                require_content(picture)
                known = image_print(encoded, picture)
            except BadImage as error:
                known = f"image {error}"
            self.seen[content] = known
        if isinstance(known, str):
            raise Fault(known)
        return known

    def look_at_all(self, images: Sequence[bytes]) -> list[ImagePrint]:
        """Returns the fingerprints of a question's images. Raises Fault, which names the image."""
        prints = []
        for number, encoded in enumerate(images):
            with naming_image(number, len(images)):
                prints.append(self.look_at(encoded))
        return prints


@contextmanager
def naming_image(number: int, images: int) -> Iterator[None]:
    """Inside, a Fault of "image" names which one of a question's images it is of."""
    try:
        yield
    except Fault as fault:
        raise Fault(str(fault).replace("image", which_image(number, images), 1)) from None


# Words, and signs that can be what an answer is about: "+" and "-", "<5" and ">5", "0.5".
TOKEN = re.compile(r"\w+|[+<>%=≤≥±]|\.(?=\d)|-(?!\s*[^\W\d])")


def text_key(text: str) -> str:
    """Returns the text without its case, punctuation, blanks and Unicode form."""
    plain = unicodedata.normalize("NFKC", text).casefold().replace("\N{MINUS SIGN}", "-")
    return " ".join(TOKEN.findall(plain))


def answer_key(answer: str) -> str:
    """Returns an answer in the form in which equal ones are equal: yes is yes in every language."""
    return (yes_or_no(answer, answer) if is_yes_no(answer) else None) or text_key(answer)


@dataclass
class Side:
    """One split or data set; a row of it is a question about some of its images, in their order."""

    name: str
    # (images, key of question and answer)
    rows: list[tuple[tuple[int, ...], str]] = field(default_factory=list)
    looks: list[NDArray[np.uint64]] = field(default_factory=list)  # by image
    images: dict[str, int] = field(default_factory=dict)  # content → image
    options: list[str] = field(default_factory=list)  # by row, their key
    patients: list[str | None] = field(default_factory=list)  # by row, where they are known

    def add(
        self,
        images: Iterable[ImagePrint],
        question: str,
        answer: str,
        options: Iterable[str] | None = None,
        patient: str | None = None,
    ) -> None:
        numbers = tuple(map(self.number_of, images))
        self.rows.append((numbers, f"{text_key(question)}\n{answer_key(answer)}"))
        self.options.append("\n".join(sorted(map(text_key, options or ()))))
        self.patients.append(patient)

    def number_of(self, image: ImagePrint) -> int:
        """Returns the number of an image, which belongs to the side from now on."""
        number = self.images.setdefault(image.content, len(self.images))
        if number == len(self.looks):
            self.looks.append(image.look)
        return number

    def part(self, name: str, rows: Iterable[int]) -> Side:
        """Returns a side of some of the rows."""
        contents, side = list(self.images), Side(name)
        for row in rows:
            images, key = self.rows[row]
            prints = [ImagePrint(contents[image], self.looks[image]) for image in images]
            side.rows.append((tuple(map(side.number_of, prints)), key))
            side.options.append(self.options[row])
            side.patients.append(self.patients[row])
        return side

    def stacked(self) -> NDArray[np.uint64]:
        """Returns the looks of all images, shape (images, 4)."""
        return np.stack(self.looks) if self.looks else np.zeros((0, 4), np.uint64)

    def repeats(self) -> dict[int, int]:
        """Returns the rows that repeat another one (the same images, question, options and
        answer), each with the first of them."""
        first: dict[tuple[Any, str], int] = {}
        keys = zip(self.rows, self.options, strict=True)
        of_row = [first.setdefault(key, row) for row, key in enumerate(keys)]
        return {row: known for row, known in enumerate(of_row) if row != known}

    def contradictions(self) -> list[list[int]]:
        """Returns the rows of each question about the same images, with the same options, that has
        different answers."""
        asked: dict[tuple[tuple[int, ...], str, str], list[int]] = {}
        for row, (images, key) in enumerate(self.rows):
            options = self.options[row]
            asked.setdefault((images, key.split("\n")[0], options), []).append(row)
        several = (rows for rows in asked.values() if len(rows) > 1)
        return [rows for rows in several if len({self.rows[row] for row in rows}) > 1]


def bits_apart(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """Returns by how many bits every look on the left differs from every one on the right, shape
    (n, m), of inputs (n, 4) and (m, 4)."""
    distance = np.zeros((len(left), len(right)), np.uint16)
    for word in range(4):
        distance += np.bitwise_count(left[:, None, word] ^ right[None, :, word])
    return distance


def near_pairs(
    left: NDArray[np.uint64], right: NDArray[np.uint64]
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yields all i and j with left[i] and right[j] at most NEAR bits apart, a bounded number at a
    time; inputs (n, 4) and (m, 4). Every pair is compared: 100,000 images take about a minute."""
    step = max(1, CHUNK // max(1, len(right)))
    for start in range(0, len(left), step):
        i, j = np.nonzero(bits_apart(left[start : start + step], right) <= NEAR)
        yield i + start, j


def image_groups(looks: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Returns a group number for every image, shape (n,), numbered by their first images: images
    that are near, directly or through others, share it."""
    count = len(looks)
    groups = np.arange(count, dtype=np.int64)
    for i, j in near_pairs(looks, looks):
        if (i == j).all():
            continue
        groups = joined(groups[i], groups[j], count)[groups]
    return groups


def joined(first: NDArray[np.int64], second: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Returns a group number for each of `count` things, shape (count,): those that pairs of
    `first` and `second` join, directly or through others, share it."""
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(count, count))
    groups: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return groups


def groups_of_rows(side: Side) -> NDArray[np.int64]:
    """Returns a group number for every row, shape (n,), of which a split holds all or none: rows
    share it that have an image in common, or nearly the same, directly or through others, or that
    have none and ask the same."""
    of_image = image_groups(side.stacked())
    images = int(of_image.max()) + 1 if len(of_image) else 0
    texts: dict[str, int] = {}
    own = [[int(of_image[image]) for image in numbers] for numbers, _ in side.rows]
    for groups, (_, key) in zip(own, side.rows, strict=True):
        if not groups:
            groups.append(images + texts.setdefault(key.split("\n")[0], len(texts)))
    pairs = [(groups[0], other) for groups in own for other in groups[1:]]
    first, second = np.array(pairs, np.int64).reshape(-1, 2).T
    together = joined(first, second, images + len(texts))
    return np.array([together[groups[0]] for groups in own], np.int64)


@dataclass(frozen=True)
class Leak:
    """What `right` shares with `left`. Images are counted on the right side, as are questions."""

    same_images: list[int]
    near_images: list[int]
    questions: list[int]  # about these images
    twins: list[int]  # with the same question and answer too, and those without images
    same_text: list[int]  # asked and answered alike about another image: no need to look
    patients: list[str]  # whose images are on both sides


def find_leak(left: Side, right: Side) -> Leak:
    """Returns what the sides share, exact over all pairs of images."""
    asked = {(image, key) for images, key in left.rows for image in images}
    # image on the right → its rows that no image has made twins yet
    waiting: dict[int, set[int]] = {}
    for row, (images, _) in enumerate(right.rows):
        for image in images:
            waiting.setdefault(image, set()).add(row)
    alike: set[int] = set()
    text_alone = {key for images, key in left.rows if not images}
    twins = {
        row for row, (images, key) in enumerate(right.rows) if not images and key in text_alone
    }
    for lefts, rights in near_pairs(left.stacked(), right.stacked()):
        alike.update(np.unique(rights).tolist())
        for i, j in zip(lefts.tolist(), rights.tolist(), strict=True):
            rows = waiting.get(j, set())
            found = {row for row in rows if (i, right.rows[row][1]) in asked}
            twins |= found
            rows -= found
    same = {number for content, number in right.images.items() if content in left.images}
    told = {key for _, key in asked}
    keyed = [row for row, (_, key) in enumerate(right.rows) if key in told]
    return Leak(
        same_images=sorted(same),
        near_images=sorted(alike - same),
        questions=[row for row, (images, _) in enumerate(right.rows) if alike & {*images}],
        twins=sorted(twins),
        same_text=[row for row in keyed if row not in twins],
        patients=sorted({one for one in right.patients if one} & set(left.patients)),
    )
