"""Which questions the page shows, with their pictures and what each model replied.

Everything here ends up in the page as JSON; replies are untrusted text, and so are questions.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rarl.data.parquet import ParquetRows
from rarl.errors import UserError
from rarl.evaluation.prediction import Prediction
from rarl.evaluation.report.gather import Report
from rarl.evaluation.report.thumbnails import byte_limit, read_images, thumbnail
from rarl.evaluation.seeds import question_of
from rarl.schema import Example

MOST_EXAMPLES = 500
TEXT_BUDGET = 3_500_000  # characters of replies in the page
LONGEST_TEXT = 4000  # of one
CUT = " … [cut here; the whole reply is in evaluation/]"
THINKING = re.compile(r"<think>(.*?)(?:</think>|$)", re.DOTALL)


@dataclass(frozen=True)
class Asked:
    """One question with the models' replies, by position in `Report.models`; None where a model was
    not asked it."""

    data_set: str
    replies: list[Prediction | None]

    @property
    def any(self) -> Prediction:
        return next(reply for reply in self.replies if reply)


def all_questions(report: Report) -> list[Asked]:
    """Of the first seed, data set by data set in the order of the file."""
    found: dict[tuple[str, ...], Asked] = {}
    for position, model in enumerate(report.models):
        for data_set in report.data_sets:
            for reply in model.replies.get(data_set, {}).get(report.example_seed, []):
                key = (data_set, *question_of(reply))
                found.setdefault(key, Asked(data_set, [None] * len(report.models))).replies[
                    position
                ] = reply
    return sorted(found.values(), key=lambda one: report.data_sets.index(one.data_set))  # stable


def choose(report: Report, questions: list[Asked], most: int = MOST_EXAMPLES) -> list[Asked]:
    """Where the best model fails, then where models differ, then the rest; data sets take turns."""
    best = report.models.index(report.best)

    def kind(one: Asked) -> int:
        reply = one.replies[best]
        if reply and not reply.correct:
            return 0
        return 1 if len({r.correct for r in one.replies if r}) > 1 else 2

    turn: dict[tuple[int, str], int] = {}
    ranked = []
    for one in questions:
        group = (kind(one), one.data_set)
        turn[group] = turn.get(group, 0) + 1
        ranked.append((group[0], turn[group], one))
    return [one for _, _, one in sorted(ranked, key=lambda r: r[:2])][:most]


def examples_json(report: Report) -> dict[str, Any]:
    """What the page's script reads: models, pictures by key, examples, and how many there would
    have been."""
    questions = all_questions(report)
    chosen = choose(report, questions)
    rows = rows_of(report, chosen)
    pictures = picture_keys(chosen)
    longest = text_limit(reply for one in chosen for reply in one.replies if reply)
    return {
        "models": [model.name for model in report.models],
        "best": report.best.name,
        "dataSets": [
            name for name in report.data_sets if any(one.data_set == name for one in chosen)
        ],
        "total": len(questions),
        "images": embed_pictures(report, chosen, pictures),
        "examples": [entry(one, rows.get(question_key(one)), pictures, longest) for one in chosen],
    }


def entry(
    one: Asked, row: Example | None, pictures: dict[tuple[str, str], str], longest: int
) -> dict[str, Any]:
    """`row` fills in what predictions of an older version do not hold."""
    known = one.any
    options = known.options or (list(row.options) if row and row.options else None)
    return {
        "id": known.example_id,
        "image": pictures[one.data_set, known.image_id],
        "imageId": known.image_id,
        "dataSet": one.data_set,
        "type": known.answer_type,
        "question": shorten(known.question, LONGEST_TEXT),
        "options": options,
        "reference": shorten(known.reference, LONGEST_TEXT),
        "rationale": shorten(known.rationale or (row.rationale if row else None) or "", longest),
        "modality": known.modality or (row.modality if row else None),
        "organ": known.organ or (row.organ if row else None),
        "replies": [reply and reply_entry(reply, longest) for reply in one.replies],
    }


def reply_entry(reply: Prediction, longest: int) -> dict[str, Any]:
    """The whole reply is shown only where it has not the form that was asked for."""
    thinking = THINKING.search(reply.reply)
    judge = None
    if reply.judge_status:
        judge = {
            "status": reply.judge_status,
            "correctness": finite(reply.judge_correctness),
            "explanation": finite(reply.judge_explanation),
            "reason": shorten(reply.judge_reason or "", longest),
        }
    return {
        "correct": reply.correct,
        "answer": None if reply.answer is None else shorten(reply.answer, longest),
        "thinking": shorten(thinking[1].strip(), longest)
        if thinking and reply.well_formed
        else None,
        "raw": None if reply.well_formed else shorten(reply.reply, longest),
        "reasoning": finite(reply.reasoning),
        "judge": judge,
    }


def question_key(one: Asked) -> tuple[str, str]:
    return one.data_set, one.any.example_id


def picture_keys(chosen: list[Asked]) -> dict[tuple[str, str], str]:
    """One key for each picture, however many questions are about it."""
    pairs = dict.fromkeys((one.data_set, one.any.image_id) for one in chosen)
    return {pair: str(number) for number, pair in enumerate(pairs)}


def embed_pictures(
    report: Report, chosen: list[Asked], keys: dict[tuple[str, str], str]
) -> dict[str, str]:
    """Data URLs by key. Pictures that cannot be found or decoded any more are left out, and the
    page says so."""
    limit = byte_limit(len(keys))
    embedded: dict[str, str] = {}
    for data_set in report.data_sets:
        source = open_rows(report, data_set)
        if source is None:
            continue
        numbers = {image_id: number for number, image_id in enumerate(source.column("image_id"))}
        wanted = {numbers[i]: keys[data_set, i] for d, i in keys if d == data_set and i in numbers}
        for number, encoded in read_images(source, list(wanted)):
            if url := thumbnail(encoded, limit):
                embedded[wanted[number]] = url
    return embedded


def rows_of(report: Report, chosen: list[Asked]) -> dict[tuple[str, str], Example]:
    """The data sets' own rows, without pictures, for what predictions lack."""
    found = {}
    for data_set in dict.fromkeys(one.data_set for one in chosen):
        source = open_rows(report, data_set)
        if source is None:
            continue
        names = ("id", "options", "rationale", "modality", "organ")
        wanted = {one.any.example_id for one in chosen if one.data_set == data_set}
        for values in zip(*(source.column(name) for name in names), strict=True):
            if values[0] in wanted:
                row = dict(zip(names, values, strict=True))
                found[data_set, row["id"]] = Example(
                    **row, image=b"", image_id="", question="", answer="", answer_type="open"
                )
    return found


def open_rows(report: Report, data_set: str) -> ParquetRows | None:
    """The measured data of the examples' seed, where it is still to be found."""
    for run in report.runs:
        if run.seed == report.example_seed and (data_set in run.base or data_set in run.trained):
            try:
                return ParquetRows(run.data_path(f"data.eval.{data_set}", run.source(data_set)))
            except UserError:
                continue
    return None


def text_limit(replies: Iterable[Prediction]) -> int:
    """The most characters of one text, so that all together keep within `TEXT_BUDGET`."""
    texts = [len(text) for r in replies for text in (r.reply, r.judge_reason or "")]
    limit = LONGEST_TEXT
    while limit > 100 and sum(min(length, limit) for length in texts) > TEXT_BUDGET:
        limit = limit * 3 // 4
    return limit


def shorten(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[:longest] + CUT


def finite(value: float | None) -> float | None:
    """JSON has no NaN."""
    return None if value is None or not math.isfinite(value) else round(value, 4)


def safe_json(value: Any) -> str:
    """JSON that no text in it can end: it is put between script tags, where `</script>` or `<!--`
    would be read as HTML; U+2028 and U+2029 end lines for older readers."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
