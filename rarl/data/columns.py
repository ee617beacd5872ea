"""The columns of canonical data: those of `Example`, by its fields. A new text field is written and
read with no edit here; older files need not have its column."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

import pyarrow as pa

from rarl.schema import Box, Example

BOX = pa.struct(
    [("label", pa.string()), *((name, pa.float64()) for name in ("x1", "y1", "x2", "y2"))]
)
KINDS = {
    tuple[bytes, ...]: pa.list_(pa.binary()),
    tuple[str, ...] | None: pa.list_(pa.string()),
    tuple[tuple[str, ...], ...] | None: pa.list_(pa.list_(pa.string())),
    tuple[Box, ...] | None: pa.list_(BOX),
    dict[str, str | None]: pa.map_(pa.string(), pa.string()),
}
HINTS = get_type_hints(Example)
SCHEMA = pa.schema(
    pa.field(
        one.name,
        KINDS.get(HINTS[one.name], pa.string()),
        (one.default, one.default_factory) != (MISSING, MISSING),
    )
    for one in fields(Example)
)
# Of files whose examples have one image each, without a label: the usual ones, and the older.
ONE_IMAGE = pa.schema(
    pa.field("image", pa.binary(), nullable=False) if field.name == "images" else field
    for field in SCHEMA
    if field.name != "image_labels"
)
IMAGES = ("image", "images")  # the columns of which a file must have one
COLUMNS = [*SCHEMA.names, "image"]
REQUIRED = [field.name for field in SCHEMA if not field.nullable and field.name not in IMAGES]
# What stands for null, by field: None where the field may be None, else the empty value.
EMPTY: dict[str, Any] = dict.fromkeys(REQUIRED, "") | {"images": ()}
EMPTY |= {one.name: one.default for one in fields(Example) if one.default is not MISSING}
# Further texts about a question that a table of one's own may hold under the fields' names.
MORE_TEXTS = [n for n, hint in HINTS.items() if n not in REQUIRED and hint in (str, str | None)]
MORE_TEXTS = [name for name in MORE_TEXTS if name not in ("dataset", "split")]


def from_row(row: dict[str, Any]) -> Example:
    """Returns the example of a row. Absent columns count as null, and null as an empty text where
    there must be one, or an empty image: the checks find that."""
    given = {name: value for name in SCHEMA.names if (value := row.get(name)) is not None}
    if isinstance(given.get("boxes"), list):
        given["boxes"] = tuple(map(box_of, given["boxes"]))
    if "image" in row and "images" not in given:
        given["images"] = [row["image"]]
    for name in (name for name, value in given.items() if isinstance(value, list)):
        absent: Any = {"images": b"", "other_facts": []}.get(name, "")
        values = (absent if one is None else one for one in given[name])
        given[name] = tuple(tuple(one) if isinstance(one, list) else one for one in values)
    if "extra" in given:
        given["extra"] = dict(given["extra"])
    return Example(**EMPTY | given)


def box_of(held: dict[str, Any] | None) -> Box:
    """Returns a box of a row. What is null in it is NaN or an empty label: the checks find that."""
    given = {name: value for name, value in (held or {}).items() if value is not None}
    return Box(**dict.fromkeys(("x1", "y1", "x2", "y2"), math.nan) | {"label": ""} | given)
