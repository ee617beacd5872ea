"""`rarl data show` on texts that are not plain words."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from rarl.cli import app
from rarl.errors import UserError
from rarl.prepare.convert import prepare_dataset
from rarl.prepare.floors import FloorQuestion, majority_answers, nearest_answers
from rarl.prepare.show import show_dataset
from tests.pictures import write_folder


def prepared(path: Path, question: str = "What?") -> Path:
    rows = [
        {
            "image": f"{i}.png",
            "question": question,
            "answer": f"[/red] {i}",
            "modality": "MR [/T1]",
            "id": str(i),
        }
        for i in range(4)
    ]
    prepare_dataset("folder", write_folder(path / "src", rows), path / "out[red]")
    return path / "out[red]"


def test_texts_in_brackets_are_shown_as_they_are(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = CliRunner().invoke(app, ["data", "show", str(prepared(tmp_path))])
    assert done.exception is None
    shown = capfd.readouterr().out
    assert "MR [/T1] 4" in shown
    assert "out[red]-examples.png" in "".join(shown.split())


def test_questions_without_a_word_have_floors_too(tmp_path: Path) -> None:
    assert list(show_dataset(prepared(tmp_path, question="?")))
    train, asked = (
        [FloorQuestion(text, a, "open", a) for text, a in zip(texts, "ab", strict=True)]
        for texts in (("?", "!"), ("?", "What?"))
    )
    assert nearest_answers(train, asked) == ["a", "a"]


def test_the_majority_answer_is_by_type_and_among_the_options_that_are_offered() -> None:
    answers = [("closed", "No."), ("closed", "no"), ("closed", "yes"), ("choice", "lung")]
    answers += [("choice", "heart"), ("choice", "heart"), ("choice", "liver")]
    train = [FloorQuestion("q", answer, kind, "i") for kind, answer in answers]
    asked = [
        FloorQuestion("q", "yes", "closed", "i"),
        FloorQuestion("q", "lung", "choice", "i", ["lung", "heart"]),
        FloorQuestion("q", "lung", "choice", "i", ["spleen", "lung"]),
        FloorQuestion("q", "left", "open", "i"),
    ]
    assert majority_answers(train, asked) == ["No.", "heart", "lung", None]


def test_a_contact_sheet_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    out = prepared(tmp_path)
    (out / f"{out.stem}-examples.png").mkdir()
    with pytest.raises(UserError, match=r"-examples\.png: cannot be written: "):
        list(show_dataset(out))
