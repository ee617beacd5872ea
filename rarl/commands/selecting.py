"""Which training questions a run asks: all, or those that `data.select` chooses by their number, by
a probe and by hard negatives. What was chosen stays in the run directory, where a continued run
reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rarl.commands.drawing import draw_rows
from rarl.commands.resolve import Setup, files_of
from rarl.config import Config
from rarl.data.check import CheckedRows
from rarl.data.order import Selection, StepOrder, selected_order, step_order
from rarl.data.parquet import ParquetRows
from rarl.display import Display
from rarl.errors import UserError
from rarl.files import file_hash, replacing, write_text
from rarl.prepare.negatives import hard_negatives
from rarl.training.checkpoint import find_checkpoint
from rarl.training.run_dir import RunDir

DIFFICULTY = "difficulty.parquet"  # in a probe's folder
CHANGED = "bring those data back, or choose another run_dir to begin anew"
DATA = b"rarl.data"  # in its metadata: the hash of the training data that were asked


def data_hash(path: str) -> str:
    """Returns what tells two training data apart: the hashes of all their files."""
    return " ".join(map(file_hash, files_of(path)))


def is_begun(run_dir: RunDir) -> bool:
    """Tells whether a run has steps to go on from, or has made all of them."""
    return run_dir.adapter.is_dir() or find_checkpoint(run_dir.checkpoints).path is not None


def require_same_data(run_dir: RunDir, data: str, begun: bool) -> None:
    """Keeps what tells the training data of a run that begins from others. Raises UserError where
    one that is continued has made its steps on others, as far as an earlier version kept that."""
    file, own = run_dir.training_data, data_hash(data)
    if not begun:
        write_text(file, own + "\n")
    elif file.is_file() and file.read_text(encoding="utf-8").strip() != own:
        raise UserError(
            f"data.train={data}: {run_dir.path} has made its steps on other data of that place; "
            f"{CHANGED}"
        )


def difficulty_file(config: Config) -> Path:
    """Returns the file of the probe that the selection goes by."""
    return RunDir(Path(config.data.select.probe or config.run_dir).expanduser()).probe / DIFFICULTY


def require_probe(config: Config) -> None:
    """Raises UserError where the selection needs a probe that was not made."""
    file = difficulty_file(config)
    if config.data.select.needs_probe and not file.is_file():
        which = "difficulty" if config.data.select.difficulty is not None else "curriculum"
        raise UserError(
            f"data.select.{which}: needs to know how difficult each question is, and there is no "
            f"{file}; `rarl probe` with the same configuration and --questions N, all that there "
            "are, writes it"
        )


def training_order(setup: Setup, checked: CheckedRows, display: Display) -> StepOrder:
    """Returns the order of the training data's usable rows, or of those of them that are selected.
    A run that begins selects; one that is continued has selected. Raises UserError."""
    config, data = setup.config, str(setup.train_data)
    begun = is_begun(setup.run_dir)
    require_same_data(setup.run_dir, data, begun)
    parts, seed = ParquetRows(data).parts, config.seed
    asked, prompts = config.data.select, config.train.prompts_per_step
    if not asked.selects:
        return step_order(parts, checked.good, prompts, seed)
    if len(parts) > 1:
        raise UserError("data.select: selects from one data set; data.train is a mixture")
    file = setup.run_dir.selection
    if not (begun and file.is_file()):
        table = select(setup, checked)
        with replacing(file) as temporary:
            pq.write_table(table, temporary)
    table = pq.read_table(file)
    taken = table.filter(table["taken"])
    if not np.isin(taken["row"].to_numpy(), checked.good).all():
        raise UserError(f"{file}: chose rows that {data} does not have any more; {CHANGED}")
    chosen = Selection(
        rows=taken["row"].to_numpy(),
        right=taken["right"].to_numpy(),
        hard=taken["hard"].to_numpy(),
        hard_share=asked.hard_negatives,
        curriculum=asked.curriculum,
    )
    count, hard = len(chosen.rows), int(chosen.hard.sum())
    if count < (asked.examples or 0):
        raise UserError(
            f"data.select.examples={asked.examples}: there are {count} to choose from; lower it"
        )
    told = f"{count} of {len(table)} training questions are asked (selection.parquet)"
    if asked.hard_negatives:
        told += f"; {hard} of them are hard negatives, {asked.hard_negatives:.0%} of each step"
    display.note(told)
    if not count:
        raise UserError(
            f"data.select.difficulty={asked.difficulty}: no question is so difficult; "
            "widen it, or null"
        )
    if asked.hard_negatives and not hard:
        raise UserError(
            "data.select.hard_negatives: there are none: no question has another answer for "
            "another image, or in near words; set it to 0"
        )
    return selected_order(chosen, prompts, seed)


def select(setup: Setup, checked: CheckedRows) -> pa.Table:
    """Returns a row for each usable row: its number, the share of right replies (NaN: not probed),
    whether it is a hard negative, and whether it is taken."""
    asked, data = setup.config.data.select, str(setup.train_data)
    source, rows = ParquetRows(data), checked.good
    right = np.full(len(rows), np.nan)
    if asked.needs_probe:
        known = read_difficulty(difficulty_file(setup.config), data)
        ids = source.column("id")
        right = np.array([known.get(ids[row], np.nan) for row in rows.tolist()])
    taken = np.ones(len(rows), bool)
    if asked.difficulty is not None:
        low, high = asked.difficulty
        taken = (right >= low) & (right <= high)
    elif asked.curriculum:
        taken = ~np.isnan(right)
    if asked.examples is not None:
        drawn = draw_rows(np.flatnonzero(taken), asked.examples, setup.config.seed)
        taken = np.isin(np.arange(len(rows)), drawn)
    hard = np.zeros(len(rows), bool)
    if asked.hard_negatives:
        hard = find_hard(source, checked)
    columns = {"row": rows, "right": right, "hard": hard, "taken": taken}
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def find_hard(source: ParquetRows, checked: CheckedRows) -> NDArray[np.bool_]:
    """Returns which of the usable rows are hard negatives: of those with images, which look as the
    first of them does."""
    questions, answers = (source.column(name) for name in ("question", "answer"))
    contents, looks = (checked.facts[name].to_pylist() for name in ("contents", "looks"))
    has_images = np.array([bool(its) for its in looks])
    places = np.flatnonzero(has_images).tolist()
    rows = checked.good[has_images].tolist()
    firsts = b"".join(looks[place][0] for place in places)
    hard = np.zeros(len(has_images), bool)
    hard[has_images] = hard_negatives(
        [questions[row] for row in rows],
        [answers[row] for row in rows],
        ["+".join(contents[place]) for place in places],
        np.frombuffer(firsts, np.uint64).reshape(len(rows), -1),
    )
    return hard


def read_difficulty(file: Path, data: str) -> dict[str, float]:
    """Returns the share of right replies by the example's id. Raises UserError where the probe
    asked other data, or less than half of these."""
    table = pq.read_table(file)
    if (table.schema.metadata or {}).get(DATA, b"").decode() != data_hash(data):
        raise UserError(
            f"{file}: this probe asked other training data than {data}; probe again, with the "
            "same configuration"
        )
    own = table.filter(pc.equal(table["data"], "train"))
    count = len(ParquetRows(data))
    if len(own) < count / 2:
        raise UserError(
            f"{file}: {len(own)} of {count} training questions were asked; what was not asked "
            f"would be left out: `rarl probe` with --questions {count}"
        )
    return dict(zip(own["id"].to_pylist(), own["right"].to_pylist(), strict=True))
