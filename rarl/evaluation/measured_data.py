"""Which data sets the measurements of a folder are of: where each is, or was, and what its
questions show and ask, so that the replies of one are not taken for those of another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rarl.data.check import CheckedRows
from rarl.data.parquet import ParquetRows
from rarl.errors import UserError
from rarl.files import write_text
from rarl.schema import Example

# In evaluation/; names with an underscore are no measurement to pyarrow.
DATA = "_data.json"
CONTENTS = "_contents"
ASKED = ("id", "question", "answer")
SHOWN = ("answer_type", "options", "boxes", "image_labels")  # with the images


def known_data(evaluation: Path) -> dict[str, str]:
    """Returns where the measured data sets are, or were, by name."""
    path = evaluation / DATA
    known: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return known


def remember_data(
    evaluation: Path, data: Mapping[str, str], checked: Mapping[str, CheckedRows]
) -> None:
    """Writes down where the measured data sets are, by name, and what their checked rows hold,
    beside those of earlier calls: the report looks there for their pictures. Raises UserError where
    replies of another data set lie under the name of one of them."""
    for name, path in data.items():
        if name in checked:
            remember_content(evaluation, name, path, checked[name])
    known = known_data(evaluation)
    if not data.items() <= known.items():
        write_text(evaluation / DATA, json.dumps({**known, **data}, indent=2) + "\n")


def remember_content(evaluation: Path, name: str, path: str, rows: CheckedRows) -> None:
    """Writes down the content of a data set, or compares it with what was measured by its name.
    Rows may have come; those that are gone are told of where their replies are looked up."""
    file, own = evaluation / CONTENTS / f"{quote(name, safe='')}.txt", contents_of(path, rows)
    held: set[str] = set()
    # Whoever deleted the replies begins anew.
    if file.is_file() and any(evaluation.rglob(f"data={quote(name, safe='')}")):
        held = set(file.read_text(encoding="utf-8").splitlines())
    asked = {line.split()[0] for line in own}
    if any(line.split()[0] in asked for line in held.difference(own)):
        folders = evaluation / "**" / f"data={quote(name, safe='')}"
        raise UserError(
            f"{path}: is called '{name}', and the replies by that name are of "
            f"{known_data(evaluation).get(name, 'other data')}, which showed other images, options "
            f"or boxes to the same questions; name it otherwise, as in data.eval.{name}-2={path}, "
            f"or delete {folders}"
        )
    if not held.issuperset(own) or not file.is_file():
        write_text(file, "".join(f"{line}\n" for line in sorted(held.union(own))))


def contents_of(path: str, rows: CheckedRows) -> list[str]:
    """Returns a line for each checked row: what tells its question from others, and what tells all
    that is shown and asked with it. Neither is of the file, which may be written otherwise."""
    numbers, contents = rows.facts["row"].to_pylist(), rows.facts["contents"].to_pylist()
    examples = ParquetRows(path).without_images(numbers, (*ASKED, *SHOWN)) if numbers else []
    return [
        f"{digest([getattr(one, name) for name in ASKED])} {digest([shown_with(one), images])}"
        for one, images in zip(examples, contents, strict=True)
    ]


def shown_with(example: Example) -> list[Any]:
    """Returns what belongs to a question besides its images."""
    boxes = None if example.boxes is None else [asdict(box) for box in example.boxes]
    return [example.answer_type, example.options, boxes, example.image_labels]


def digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
