"""Which rows can be used. Training reads every row once before it starts, to name bad ones now."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterator
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
from rarl.replies.boxes import boxes_fault
from rarl.schema import ANSWER_TYPES, Example
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
    return options_fault(example.answer, example.options) if example.options else None


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
        ("content", pa.string()),  # of its image, by `Fingerprint`
        ("look", pa.binary()),
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

    def facts_in(self, path: str, rows: list[int]) -> Iterator[dict[str, Any]]:
        """Yields a row of `FACTS` for each of `rows`. Those of a part of a file that cannot be read
        are bad, too. An image is decoded once for all questions about it."""
        source, images = ParquetRows(path), dict[bytes, dict[str, Any]]()
        for row in rows:
            try:
                facts = self.facts_of(source.read([row])[0], images)
            except UserError as error:
                facts = {"reason": str(error)}
            yield {name: facts.get(name) for name in FACTS.names} | {"row": row}

    def facts_of(self, example: Example, images: dict[bytes, dict[str, Any]]) -> dict[str, Any]:
        """Returns what is known of an example; `images` keeps what is known of its image. Raises
        UserError for an example that cannot be used."""
        fault = text_fault(example)
        try:
            if fault is None:
                digest = hashlib.sha256(example.image).digest()
                image = images[digest] = images.get(digest) or self.facts_of_image(example.image)
                height, width = image["size"]
                fault = boxes_fault(example.boxes or (), width, height)
            if fault is None:
                return image | self.lengths_of(example, height, width)
        except BadImage as error:
            fault = f"image {error}"
        raise UserError(f"example '{example.id}': {fault}")

    def facts_of_image(self, encoded: bytes) -> dict[str, Any]:
        picture = decode_image(encoded)
        facts: dict[str, Any] = {"size": (picture.height, picture.width)}
        if self.fingerprint is not None:
            facts["content"], facts["look"] = self.fingerprint(encoded, picture)
        return facts

    def lengths_of(self, example: Example, height: int, width: int) -> dict[str, int]:
        if self.lengths is None:
            return {}
        from rarl.data.stream import load_processor  # with Ray, which `rarl prepare` does without

        processor = load_processor(self.lengths.model_path)
        return self.lengths.lengths(example, height, width, processor)._asdict()


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
