"""The check of the data before anything is paid for: rows that cannot be used, and prompts with
replies that are too long for the engines."""

from __future__ import annotations

from collections.abc import Sequence

from rarl.commands.held_out import fingerprint
from rarl.commands.resolve import Setup
from rarl.data.check import CheckedRows, RowCheck, check_rows
from rarl.data.lengths import (
    MeasuredRow,
    RowLengths,
    measured_lengths,
    require_room,
    training_lengths,
)
from rarl.display import Display
from rarl.files import write_text

SIZES = ("row", "images", *RowLengths._fields)


def check_data(
    setup: Setup, display: Display, data: dict[str, str], families: Sequence[str], engines: bool
) -> dict[str, CheckedRows]:
    """Checks every data set, given by name and path; "train" is the training data, the others are
    measured with prompts of these families, of which the first `evaluation.max_examples` good rows
    are returned. Lists bad rows that are skipped in the run directory.
    Raises UserError for a bad row that may not be skipped and, if `engines` are to be asked, where
    the longest prompt and reply do not fit."""
    checked = {}
    for name, path in data.items():
        rule = measured_lengths(setup.config, setup.model_path, families)
        if name == "train":
            rule = training_lengths(setup.config, setup.model_path)
        check = RowCheck(fingerprint, rule if engines else None, setup.config.data.max_images)
        with display.working(f"checking {name} data"):
            checked[name] = check_rows(path, setup.config.data.on_bad_row, check)
        bad = checked[name].bad
        if bad:
            lines = "".join(f"row {one.row}: {one.reason}\n" for one in bad)
            write_text(setup.run_dir.path / f"skipped-{name}.txt", lines)
            listed = f"listed in skipped-{name}.txt; the first: {bad[0].reason}"
            display.note(f"{name}: {len(bad)} bad rows skipped, {listed}")
        most, rows = setup.config.evaluation.max_examples, len(checked[name].good)
        if name != "train" and most is not None and most < rows:
            checked[name] = checked[name].first(most)
            display.note(f"{name}: the first {most} of {rows} rows (evaluation.max_examples)")
    if engines:
        measured = [
            MeasuredRow(data[name], row, RowLengths(*lengths), images)
            for name, one in checked.items()
            for row, images, *lengths in zip(
                *(one.facts[its].to_pylist() for its in SIZES), strict=True
            )
        ]
        require_room(measured, setup.config.rollout.max_model_length)
    return checked
