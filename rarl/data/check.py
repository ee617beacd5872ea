"""Which rows can be used. Training reads every row once before it starts, to name bad ones now."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from rarl.data.images import BadImage, decode_image
from rarl.data.lengths import LengthRule, RowLengths
from rarl.data.parquet import ParquetRows
from rarl.errors import UserError
from rarl.prompts import SPECIAL_TOKEN
from rarl.replies.boxes import boxes_in_images_fault
from rarl.schema import ANSWER_TYPES, MOST_IMAGES, Example
from rarl.system.placement import READ_CPUS

UNSEEN = ("Cc", "Cf", "Zs", "Zl", "Zp")  # Unicode's controls, marks without width, and blanks
ROWS_PER_TASK = 256


def text_fault(example: Example) -> str | None:
    """Returns what is wrong with the texts and options of an example, or None."""
    for name in ("id", "image_id", "question", "answer"):
        if not is_seen(getattr(example, name)):
            return f"the {name} is empty"
    if example.answer_type not in ANSWER_TYPES:
        return f"answer_type '{example.answer_type}' is not one of {', '.join(ANSWER_TYPES)}"
    if example.answer_type == "choice" and not example.options:
        return "answer_type is 'choice' but there are no options"
    if example.answer_type == "boxes" and example.boxes is None:
        return "answer_type is 'boxes' but there are no boxes; [] says that there is nothing"
    if example.answer_type == "boxes" and len(example.images) != 1:
        return (
            f"answer_type is 'boxes', which are of one image, and there are {len(example.images)}"
        )
    if example.options and (fault := options_fault(example.answer, example.options)):
        return fault
    return labels_fault(example.image_labels, len(example.images))


def options_fault(answer: str, options: tuple[str, ...]) -> str | None:
    if not all(is_seen(option) for option in options):
        return f"an option is empty among {list(options)}"
    if answer not in options:
        return f"answer '{answer}' is not among the options {list(options)}"
    if len(options) == 1:
        return f"'{answer}' is the only option"
    if options.count(answer) > 1:
        return f"answer '{answer}' is there twice among the options {list(options)}"
    return None


def labels_fault(labels: tuple[str, ...] | None, images: int) -> str | None:
    if labels is None:
        return None
    if len(labels) != images:
        return f"{images} images but {len(labels)} image_labels"
    if not all(is_seen(label) for label in labels):
        return f"a label is empty among {list(labels)}"
    marks = [mark[0] for label in labels if (mark := SPECIAL_TOKEN.search(label))]
    return f"an image label has '{marks[0]}', which stands for something else" if marks else None


def images_fault(images: Sequence[bytes], most: int = MOST_IMAGES) -> str | None:
    """Returns what is wrong with an example's images together, or None."""
    if len(images) > most:
        return f"{len(images)} images are more than {most} (data.max_images)"
    first: dict[bytes, int] = {}
    for number, image in enumerate(images, start=1):
        same = first.setdefault(image, number)
        if same != number:
            return f"image {number} is the same as image {same}"
    return None


def which_image(number: int, images: int) -> str:
    """Returns how a message names an image, which is counted from 0."""
    return "image" if images == 1 else f"image {number + 1} of {images}"


def is_seen(text: str) -> bool:
    """Returns whether there is anything to read."""
    return any(unicodedata.category(character) not in UNSEEN for character in text)


@dataclass(frozen=True)
class BadRow:
    row: int
    reason: str


# Makes an image's identity and its look from the encoded file and the picture.
Fingerprint = Callable[[bytes, Image.Image], tuple[str, bytes]]
# What is known of a row: why it cannot be used, or else what was asked for.
FACTS = pa.schema(
    [
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("contents", pa.list_(pa.string())),  # of its images, by `Fingerprint`
        ("looks", pa.list_(pa.binary())),
        ("images", pa.int64()),
        *((name, pa.int64()) for name in RowLengths._fields),
    ]
)


@dataclass(frozen=True)
class CheckedRows:
    """The rows that can be used, ascending, and those that were left out. `facts` has the former
    with the columns of `FACTS`."""

    good: NDArray[np.int64]
    bad: list[BadRow]
    facts: pa.Table = field(default_factory=FACTS.empty_table)

    def first(self, most: int) -> CheckedRows:
        """Returns the same with the first good rows alone."""
        return replace(self, good=self.good[:most], facts=self.facts.slice(0, most))


@dataclass(frozen=True)
class RowCheck:
    """What is to be known of rows besides their faults. Picklable."""

    fingerprint: Fingerprint | None = None
    lengths: LengthRule | None = None
    most_images: int = MOST_IMAGES

    def facts_in(self, path: str, rows: list[int]) -> Iterator[dict[str, Any]]:
        """Yields a row of `FACTS` for each of `rows`. Those of a part of a file that cannot be read
        are bad, too. An image is decoded once for all questions about it."""
        source, known = ParquetRows(path), dict[bytes, dict[str, Any]]()
        for row in rows:
            try:
                facts = self.facts_of(source.read([row])[0], known)
            except UserError as error:
                facts = {"reason": str(error)}
            yield {name: facts.get(name) for name in FACTS.names} | {"row": row}

    def facts_of(self, example: Example, known: dict[bytes, dict[str, Any]]) -> dict[str, Any]:
        """Returns what is known of an example; `known` keeps what is known of its images. Raises
        UserError for an example that cannot be used."""
        fault = text_fault(example) or images_fault(example.images, self.most_images)
        try:
            if fault is None:
                found = self.facts_of_images(example.images, known)
                sizes = [each["size"] for each in found]
                fault = boxes_in_images_fault(example.boxes, sizes)
            if fault is None:
                columns = {one: [each[one] for each in found] for one in ("content", "look")}
                facts = {"contents": columns["content"], "looks": columns["look"]}
                return facts | {"images": len(found)} | self.lengths_of(example, sizes)
        except BadImage as error:
            fault = str(error)
        raise UserError(f"example '{example.id}': {fault}")

    def facts_of_images(
        self, images: Sequence[bytes], known: dict[bytes, dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Raises BadImage, which names the image."""
        found = []
        for number, encoded in enumerate(images):
            digest = hashlib.sha256(encoded).digest()
            try:
                known[digest] = known.get(digest) or self.facts_of_image(encoded)
            except BadImage as error:
                raise BadImage(f"{which_image(number, len(images))} {error}") from None
            found.append(known[digest])
        return found

    def facts_of_image(self, encoded: bytes) -> dict[str, Any]:
        picture = decode_image(encoded)
        content, look = self.fingerprint(encoded, picture) if self.fingerprint else (None, None)
        return {"size": (picture.height, picture.width), "content": content, "look": look}

    def lengths_of(self, example: Example, sizes: Sequence[tuple[int, int]]) -> dict[str, int]:
        if self.lengths is None:
            return {}
        from rarl.data.stream import load_processor  # with Ray, which `rarl prepare` does without

        processor = load_processor(self.lengths.model_path)
        return self.lengths.lengths(example, sizes, processor)._asdict()


def check_rows(
    path: str, on_bad_row: Literal["fail", "skip"], check: RowCheck | None = None
) -> CheckedRows:
    """Checks all rows, by default for faults alone. Raises UserError for the first bad one under
    "fail", or if none is good."""
    import ray.data  # here, since `rarl prepare` asks for the faults above and needs no Ray

    from rarl.data.stream import WORKER_ENVIRONMENT, tasks_at_once

    check = check or RowCheck()

    def check_batch(batch: pa.Table) -> pa.Table:
        facts = check.facts_in(path, batch["row"].to_pylist())
        return pa.Table.from_pylist(list(facts), schema=FACTS)

    numbers = np.arange(len(ParquetRows(path)), dtype=np.int64)
    starts = range(0, len(numbers), ROWS_PER_TASK)
    blocks = [pa.table({"row": numbers[start : start + ROWS_PER_TASK]}) for start in starts]
    checked = ray.data.from_arrow(blocks).map_batches(
        check_batch,
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=READ_CPUS,
        # The processes that prepare examples later: each loads the model's processor once.
        compute=ray.data.TaskPoolStrategy(size=tasks_at_once()),
        runtime_env=WORKER_ENVIRONMENT,
    )
    found = pa.concat_tables(checked.iter_batches(batch_format="pyarrow", batch_size=None))
    found = found.sort_by("row")
    is_good = pc.is_null(found["reason"])
    faulty = found.filter(pc.invert(is_good)).select(["row", "reason"])
    bad = [BadRow(**one) for one in faulty.to_pylist()]
    if bad and on_bad_row == "fail":
        more = f" (and {len(bad) - 1} more bad rows)" if len(bad) > 1 else ""
        advice = "; mend the data or set data.on_bad_row=skip"
        raise UserError(f"{path}: row {bad[0].row}: {bad[0].reason}{more}{advice}")
    facts = found.filter(is_good)
    if not len(facts):
        none = f"not one of the {len(numbers)} rows can be used; the first: {bad[0].reason}"
        raise UserError(f"{path}: {none}")
    return CheckedRows(facts["row"].to_numpy(), bad, facts)
