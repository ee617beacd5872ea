"""The record of one reply, from its prompt to its advantage, and the Parquet files that hold
records.

A `Sample` grows: sampling gives it a rollout, judging a verdict, scoring a score, the algorithm an
advantage. It is what is scored, trained on, stored, judged, measured and shown, so that nothing
about a reply is kept anywhere else.

On disk a record is one row. The columns are derived from the dataclasses: the leaf `organ` of the
field `example` is the column `example/organ`, the reward `accuracy` is `score/rewards/accuracy`,
and the column `ward` of the user's own table is `example/extra/ward`. A new field is thus a new
column, with no edit here. Fields that are marked IN_MEMORY are not written.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rarl.files import replacing
from rarl.replies.answers import is_right
from rarl.replies.boxes import read_boxes
from rarl.replies.tags import Reply, parse_reply
from rarl.schema import (
    IN_MEMORY,
    Answered,
    Box,
    Detail,
    Example,
    Explained,
    PreparedExample,
    Prompt,
    Rollout,
    Score,
    Verdict,
)


@dataclass
class Sample:
    """One reply with everything that is known of it. A field is None until its step has filled it.

    number: the reply's place among the replies to its prompt. rederived: the reply to the thinking
    alone, without the image, which the reward `consistency` compares. explained: what the base
    model reads from the thinking, for the reward `explains`. thinking_logprob: of the thinking's
    tokens (nats, their mean), as the base model has it without the image, for `fluency`. answered:
    the reply to the question after this one, which is a look. detail: what a look before this one
    had shown. seconds: from the request of the batch to this reply. prepared: what the models are
    shown; it is not kept on disk.
    """

    example: Example
    prompt: Prompt
    rollout: Rollout
    number: int = 0
    rederived: str | None = None
    explained: Explained | None = None
    thinking_logprob: float | None = None
    answered: Answered | None = None
    detail: Detail | None = None
    verdict: Verdict | None = None
    score: Score | None = None
    advantage: float | None = None
    seconds: float | None = None
    prepared: PreparedExample | None = field(default=None, metadata=IN_MEMORY, repr=False)

    @cached_property
    def reply(self) -> Reply:
        """The thinking and the answer that are read from the completion; of a look, the box."""
        return parse_reply(self.rollout.text, self.prompt.form)

    @property
    def answer(self) -> str | None:
        """The answer that was given in the end: of a look, in the reply that came after it."""
        if self.prompt.form != "look":
            return self.reply.answer
        if self.answered is None:
            return None
        return parse_reply(self.answered.text, self.answered.form).answer

    @property
    def is_right(self) -> bool:
        """Whether the answer that was given in the end is exactly right."""
        example = self.example
        return is_right(
            self.answer,
            example.answer,
            example.answer_type,
            options=example.options,
            also_right=example.also_right,
            boxes=example.boxes,
            frame=self.prompt.frame,
        )

    @cached_property
    def boxes(self) -> tuple[Box, ...] | None:
        """The boxes that the answer names, in pixels of the image file; None for no boxes."""
        frame = self.prompt.frame
        return None if frame is None else read_boxes(self.reply.answer, frame)

    @property
    def rewards(self) -> Mapping[str, float | None]:
        """The raw values of the rewards by name. Raises ValueError if the sample is not scored."""
        if self.score is None:
            raise ValueError(f"the reply to '{self.example.id}' has not been scored")
        return self.score.rewards


Group = list[Sample]  # the replies to one prompt


def flatten(groups: Iterable[Group]) -> list[Sample]:
    """Returns the samples of all groups, group by group."""
    return [sample for group in groups for sample in group]


def write_samples(
    path: Path, samples: Sequence[Sample], constants: Mapping[str, Any] | None = None
) -> None:
    """Writes one Parquet file, whole or not at all. `constants` are further columns that have the
    same value in every row, such as the training step."""
    table = to_table(samples)
    for name, value in (constants or {}).items():
        table = table.append_column(name, pa.array([value] * len(samples)))
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def read_samples(path: Path) -> list[Sample]:
    """Reads what `write_samples` wrote; other columns are ignored. Fields that are kept in memory
    alone are empty."""
    # One file at a time: the type of a column whose values are all null differs between files.
    return from_table(pq.ParquetFile(path).read())


def to_table(samples: Sequence[Sample]) -> pa.Table:
    """Returns one row for each sample."""
    columns: dict[str, pa.Array] = {}
    for leaf in leaves(Sample):
        values = [leaf.of(sample) for sample in samples]
        if not pa.types.is_map(leaf.arrow):
            columns[leaf.name] = pa.array(values, leaf.arrow)
            continue
        # A mapping: one column for each key that any sample has.
        for key in dict.fromkeys(key for value in values for key in value or ()):
            own = [None if value is None else value.get(key) for value in values]
            columns[f"{leaf.name}/{key}"] = pa.array(own, leaf.arrow.item_type)
    return pa.table(columns)


def from_table(table: pa.Table) -> list[Sample]:
    """Returns the samples of a table that `to_table` made, in its order."""
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    return [record_of(Sample, "", row, columns) for row in range(len(table))]


@dataclass(frozen=True)
class Leaf:
    """A stored field of a record or of a part of it."""

    name: str
    path: tuple[str, ...]
    arrow: pa.DataType

    def of(self, sample: Sample) -> Any:
        """Returns the field's value; None if the part that it belongs to is None."""
        value: Any = sample
        for name in self.path:
            if value is None:
                return None
            value = getattr(value, name)
        if isinstance(value, tuple):
            return [asdict(one) if is_dataclass(one) else one for one in value]  # type: ignore[arg-type]
        return value


@cache
def leaves(record: type, path: tuple[str, ...] = ()) -> list[Leaf]:
    """Returns the stored leaves of a dataclass and of the dataclasses inside it, in their order."""
    found: list[Leaf] = []
    for one, kind in stored_fields(record):
        here = (*path, one.name)
        if is_dataclass(kind):
            found += leaves(typing.cast(type, kind), here)
        else:
            found.append(Leaf("/".join(here), here, arrow_type(kind)))
    return found


@cache
def stored_fields(record: type) -> list[tuple[Field[Any], Any]]:
    """Returns the fields that are written, each with its type; `X | None` counts as X."""
    hints = typing.get_type_hints(record)
    stored = [one for one in fields(record) if not one.metadata.get("in_memory")]
    return [(one, without_none(hints[one.name])) for one in stored]


def is_record(kind: Any) -> bool:
    return is_dataclass(kind)


def without_none(kind: Any) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next(one for one in typing.get_args(kind) if one is not type(None))
    return kind


def arrow_type(kind: Any) -> pa.DataType:
    """Returns the Arrow type of a field's type."""
    plain = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    if kind in plain:
        return plain[kind]
    if is_dataclass(kind):
        its = stored_fields(typing.cast(type, kind))
        return pa.struct([(one.name, arrow_type(its_kind)) for one, its_kind in its])
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return pa.string()
    if origin in (list, tuple):
        return pa.list_(arrow_type(typing.get_args(kind)[0]))
    if origin is dict:
        return pa.map_(pa.string(), arrow_type(without_none(typing.get_args(kind)[1])))
    raise TypeError(f"a record cannot hold {kind}: samples.py knows no Arrow type for it")


def part_of(kind: Any, value: Any) -> Any:
    """Returns an element of a tuple as its type has it."""
    if is_record(kind):
        return kind(**value)
    return tuple(value) if typing.get_origin(kind) is tuple else value


def record_of(record: type, prefix: str, row: int, columns: Mapping[str, list[Any]]) -> Any:
    """Returns the record of one row, or None for a part of which every column is null."""
    values: dict[str, Any] = {}
    empty = True
    for one, kind in stored_fields(record):
        name = f"{prefix}{one.name}"
        if is_dataclass(kind):
            value = record_of(typing.cast(type, kind), f"{name}/", row, columns)
        elif typing.get_origin(kind) is dict:
            value = {
                key.removeprefix(f"{name}/"): column[row]
                for key, column in columns.items()
                if key.startswith(f"{name}/")
            }
        else:
            value = columns[name][row] if name in columns else None
            empty = empty and value is None
            if value is not None and typing.get_origin(kind) is tuple:
                part: Any = typing.get_args(kind)[0]
                value = tuple(part_of(part, one) for one in value)
        if value is None and one.default is not None and one.default is not MISSING:
            continue  # a file without this column, written before the field was there
        values[one.name] = value
    if empty and prefix:
        return None
    return record(**(missing_in_memory(record) | values))


@cache
def missing_in_memory(record: type) -> dict[str, Any]:
    """Returns empty values for the fields that are not stored and have no default."""
    hints = typing.get_type_hints(record)
    return {
        one.name: hints[one.name]()
        for one in fields(record)
        if one.metadata.get("in_memory")
        and one.default is MISSING
        and one.default_factory is MISSING
    }
