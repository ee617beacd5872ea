"""What is measured is compared with what was trained on: images, near copies, questions, files."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageFilter

from rarl.commands import checked_data, held_out
from rarl.commands.held_out import compare_with_training, fingerprint, trained_on
from rarl.commands.resolve import Setup, resolve
from rarl.commands.targets import read_target
from rarl.config import load_config
from rarl.data.check import FACTS, CheckedRows, RowCheck
from rarl.data.parquet import ParquetRows, write_examples
from rarl.display import Display
from rarl.errors import UserError
from rarl.evaluation.report.gather import notes_on, read_run
from rarl.schema import Example
from tests.runs import REPOSITORY


def picture(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (128, 128), dtype=np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(6))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, format=kind)
    return out.getvalue()


def row(number: int, image: bytes, question: str, answer: str = "yes") -> Example:
    return Example(f"row-{number}", (image,), f"image-{number}", question, answer, "closed")


TRAIN = [row(i, encoded(picture(i)), f"Is there a mass in {i}?") for i in range(4)]
TEST = [
    replace(TRAIN[0], id="twin", question="is there a mass in 0"),
    replace(TRAIN[1], id="same image", question="Is it large?"),
    row(7, encoded(picture(2), "JPEG"), "Is it a near copy?"),
    row(8, encoded(picture(8)), "Is there a mass in 3?"),
    row(9, encoded(picture(9)), "Is it new?"),
]


def check(path: str, on_bad_row: str = "skip", check: RowCheck | None = None) -> CheckedRows:
    """`check_rows` in this process, without Ray."""
    rows = list(range(len(ParquetRows(path))))
    facts = list(RowCheck(fingerprint).facts_in(path, rows))
    return CheckedRows(np.array(rows), [], pa.Table.from_pylist(facts, schema=FACTS))


class Told(Display):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def setup_of(folder: Path, *overrides: str, test: list[Example] = TEST) -> Setup:
    """Of a run that trains."""
    folder.mkdir(exist_ok=True)
    write_examples(folder / "train.parquet", TRAIN)
    write_examples(folder / "test.parquet", test)
    data = [f"data.train={folder}/train.parquet", f"data.eval={{mine: {folder}/test.parquet}}"]
    asked = [*data, f"run_dir={folder / 'run'}", *overrides]
    return resolve(load_config(REPOSITORY / "configs/demo.yaml", asked))


def compared(setup: Setup, trains: bool = True) -> list[str]:
    """Returns what is said."""
    display, most = Told(), setup.config.evaluation.max_examples or len(TEST)
    checked = {name: check(path).first(most) for name, path in setup.eval_data.items()}
    if trains:
        checked["train"] = check(str(setup.train_data))
    compare_with_training(setup, display, checked)
    return display.lines


def test_what_test_data_share_with_training_data_is_said_and_kept(tmp_path: Path) -> None:
    setup = setup_of(tmp_path)
    (told,) = compared(setup)
    assert told.startswith(
        "LEAK: mine: 2 of its 5 images are in the training data, and 1 nearly so; 3 of its 5 "
        "questions are about them, 1 with the same question and answer."
    )
    assert "1 of its 5 questions are asked and answered alike in the training data about" in told
    kept = json.loads((tmp_path / "run" / "leaks.json").read_text())["mine"]
    counts = {name: kept[name] for name in ("same_images", "near_images", "twins", "same_text")}
    assert counts == {"same_images": 2, "near_images": 1, "twins": 1, "same_text": 1}
    assert told + "." in notes_on([read_run(tmp_path / "run", False, None)], [], {})


def test_only_what_is_measured_counts_and_held_out_data_are_no_warning(tmp_path: Path) -> None:
    setup = setup_of(tmp_path, "evaluation.max_examples=2", test=TEST[::-1])
    (told,) = compared(setup)
    assert told.startswith(
        "mine: none of its 2 images is in the training data, nor nearly so. 1 of its 2 questions"
    )
    assert not any(
        "images" in note for note in notes_on([read_run(tmp_path / "run", False, None)], [], {})
    )


def test_how_many_of_a_data_set_are_measured_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_data, "check_rows", check)
    display, setup = Told(), setup_of(tmp_path, "evaluation.max_examples=2")
    sets = {"train": str(setup.train_data), **setup.eval_data}
    checked_data.check_data(setup, display, sets, [], engines=False)
    assert display.lines[-1] == "mine: the first 2 of 5 rows (evaluation.max_examples)"
    assert sum("the first" in line for line in display.lines) == 1


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The training data that were looked at again."""
    paths: list[str] = []

    def check_rows(path: str, on_bad_row: str, its: RowCheck) -> CheckedRows:
        paths.append(path)
        return check(path)

    monkeypatch.setattr(held_out, "check_rows", check_rows)
    yield paths


def measured(folder: Path, *data: Path) -> Setup:
    """Of `rarl eval RUN DATA`."""
    asked = read_target(str(folder / "run"), [str(path) for path in data], "", None)
    return resolve(asked.config, asked.made_with)


def test_a_later_measurement_is_compared_when_the_training_data_are_gone(
    tmp_path: Path, looked_at: list[str]
) -> None:
    compared(setup_of(tmp_path))
    (tmp_path / "run" / "adapter").mkdir()
    (tmp_path / "train.parquet").unlink()
    write_examples(tmp_path / "other.parquet", TEST[:1])
    (told,) = compared(measured(tmp_path, tmp_path / "other.parquet"), trains=False)
    assert told.startswith("LEAK: other: 1 of its 1 images are in the training data")
    assert looked_at == []
    assert set(json.loads((tmp_path / "run" / "leaks.json").read_text())) == {"mine", "other"}


def test_a_run_that_kept_nothing_looks_at_its_training_data_once(
    tmp_path: Path, looked_at: list[str]
) -> None:
    setup_of(tmp_path)
    assert compared(measured(tmp_path), trains=False) == [], "nothing was trained"
    (tmp_path / "run" / "adapter").mkdir()
    for _ in range(2):
        assert compared(measured(tmp_path), trains=False)[-1].startswith("LEAK: mine: 2 of")
    assert looked_at == [str(tmp_path / "train.parquet")]
    (tmp_path / "run" / "trained-on.parquet").unlink()
    (tmp_path / "train.parquet").unlink()
    (told,) = compared(measured(tmp_path), trains=False)
    assert told == "the training data are not at hand, so nothing is compared with them"


def test_what_a_start_adapter_was_trained_on_counts_too(tmp_path: Path) -> None:
    first = setup_of(tmp_path / "first")
    compared(first)
    second = setup_of(tmp_path / "second", test=TEST)
    write_examples(tmp_path / "second" / "train.parquet", [TEST[4]])
    second = replace(second, start_adapter=tmp_path / "first" / "run" / "adapter")
    (told,) = compared(second)
    assert told.startswith("LEAK: mine: 3 of its 5 images are in the training data, and 1 near")


def test_files_that_are_trained_on_are_not_measured_unless_told(tmp_path: Path) -> None:
    setup_of(tmp_path)
    shutil.copy(tmp_path / "train.parquet", tmp_path / "copy.parquet")
    (tmp_path / "mixture.yaml").write_text("train.parquet: 1\ntest.parquet: 2\n")
    base = [f"run_dir={tmp_path / 'new'}", "data.eval={}"]
    for train, test, said in (
        ("train.parquet", "train.parquet", "train.parquet is a file of data.train"),
        ("train.parquet", "copy.parquet", "copy.parquet has the same content as .*train.parquet"),
        ("mixture.yaml", "test.parquet", "test.parquet is a file of data.train"),
        ("copy.parquet", ".", "copy.parquet is a file of data.train"),
    ):
        both = [f"data.train={tmp_path / train}", f"data.eval.x={tmp_path / test}"]
        wanted = [*base, *both]
        with pytest.raises(
            UserError, match=rf"data\.eval\.x=.*{said}.*data\.allow_same_files=true"
        ):
            resolve(load_config(REPOSITORY / "configs/demo.yaml", wanted))
        assert not (tmp_path / "new").exists()
    wanted.append("data.allow_same_files=true")
    resolve(load_config(REPOSITORY / "configs/demo.yaml", wanted))
    with pytest.raises(UserError, match=r"is a file of data\.train"):
        measured(tmp_path, tmp_path / "train.parquet")
    asked = read_target(
        str(tmp_path / "run"), [f"{tmp_path}/train.parquet", "data.allow_same_files=true"], "", None
    )
    resolve(asked.config, asked.made_with)


def test_a_model_that_nothing_is_known_of_may_be_measured_on_anything(
    tmp_path: Path, model_path: str
) -> None:
    write_examples(tmp_path / "test.parquet", TEST)
    asked = read_target(model_path, [str(tmp_path / "test.parquet")], "", tmp_path / "out")
    assert asked.config.data.train is None
    assert compared(resolve(asked.config, asked.made_with), trains=False) == []


def test_nothing_is_trained_without_training_data_and_none_is_called_train(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.train=null: there is nothing to train on"):
        setup_of(tmp_path, "data.train=null")
    with pytest.raises(UserError, match=r"data\.eval\.train: this is what the training data are"):
        setup_of(tmp_path, f"data.eval.train={tmp_path}/test.parquet")
    setup_of(tmp_path)
    asked = read_target(
        str(tmp_path / "run"), [f"data.eval={{train: {tmp_path}/test.parquet}}"], "", None
    )
    with pytest.raises(UserError, match=r"data\.eval\.train: this is what the training data are"):
        resolve(asked.config, asked.made_with)


def test_what_a_run_was_trained_on_is_kept_only_with_its_own_data(tmp_path: Path) -> None:
    compared(setup_of(tmp_path / "first"))
    second = setup_of(tmp_path / "second")
    start = tmp_path / "first" / "run" / "adapter"
    second = replace(second, start_adapter=start, train_data=None)
    table = trained_on(second, Told(), check(str(tmp_path / "second" / "test.parquet")))
    assert table is not None and len(table) == len(TRAIN), "what the first was trained on"
    assert not second.run_dir.trained_on.exists()
