"""Whether what is measured was held out of training: the same images, nearly the same ones, and the
same questions."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rarl.commands.resolve import Setup, training_data
from rarl.data.check import CheckedRows, RowCheck, check_rows
from rarl.data.parquet import ParquetRows
from rarl.display import Display
from rarl.files import replacing, write_text
from rarl.prepare.fingerprint import ImagePrint, Side, image_print
from rarl.prepare.leaks import is_leak, leak_line, shared_between
from rarl.training.run_dir import RunDir


def fingerprint(encoded: bytes, picture: Image.Image) -> tuple[str, bytes]:
    """Returns an image's identity and its look."""
    found = image_print(encoded, picture)
    return found.content, found.look.tobytes()


def compare_with_training(setup: Setup, display: Display, checked: dict[str, CheckedRows]) -> None:
    """Says of each measured data set what it shares with the training data, and keeps it in the run
    directory, where the report finds it. All pairs of images are compared: 100,000 with 1,000 take
    about a second."""
    trained = trained_on(setup, display, checked.get("train"))
    if trained is None:
        return
    side, found = side_of("the training data", trained), setup.run_dir.read_leaks()
    for name, path in setup.eval_data.items():
        pair = shared_between(side, side_of(name, with_texts(path, checked[name].facts)))
        found[name] = pair | {"warns": is_leak(pair), "told": leak_line(pair)}
        display.note(found[name]["told"])
    write_text(setup.run_dir.leaks, json.dumps(found, indent=2) + "\n")


def trained_on(setup: Setup, display: Display, rows: CheckedRows | None) -> pa.Table | None:
    """Returns fingerprint and texts of every row that the adapter is or was trained on, by the run
    that it started from, too; None where there is no adapter or nothing is known. `rows` is the
    training data, where it was checked. The run directory keeps what is returned: the data may be
    gone later, and looking at all images again would take long."""
    run_dir, path, tables = setup.run_dir, setup.train_data, []
    if rows is None and run_dir.adapter.is_dir():
        if run_dir.trained_on.is_file():
            return pq.read_table(run_dir.trained_on)
        path = training_data(setup.made_with, run_dir)
        if path is None:
            display.note("the training data are not at hand, so nothing is compared with them")
            return None
        with display.working("checking train data"):
            rows = check_rows(path, "skip", RowCheck(fingerprint))
    own = [] if rows is None or path is None else [with_texts(path, rows.facts)]
    tables += own
    if setup.start_adapter is not None:
        earlier = RunDir(setup.start_adapter.parent).trained_on
        if earlier.is_file():
            tables.append(pq.read_table(earlier))
    # An earlier version's has no patients.
    whole = pa.concat_tables(tables, promote_options="default") if tables else None
    if whole is not None and own:
        with replacing(run_dir.trained_on) as temporary:
            pq.write_table(whole, temporary)
    return whole


def with_texts(path: str, facts: pa.Table) -> pa.Table:
    """Returns contents and looks of the images, questions, answers and patients of the good rows of
    a data set."""
    source, table = ParquetRows(path), facts.select(["contents", "looks"])
    for name in ("question", "answer", "patient"):
        column = pa.array(source.column(name), pa.string())
        table = table.append_column(name, column.take(facts["row"]))
    return table


def side_of(name: str, table: pa.Table) -> Side:
    side = Side(name)
    for row in table.to_pylist():
        # An earlier version's has one image a row.
        contents = [row["content"]] if row.get("contents") is None else row["contents"]
        looks = [row["look"]] if row.get("looks") is None else row["looks"]
        seen = (np.frombuffer(look, np.uint64) for look in looks)
        images = [ImagePrint(content, look) for content, look in zip(contents, seen, strict=True)]
        side.add(images, row["question"], row["answer"], patient=row.get("patient"))
    return side
