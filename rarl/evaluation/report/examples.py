"""Which questions the page shows, with their pictures and what each model replied.

Everything here ends up in the page as JSON; replies are untrusted text, and so are questions.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

from PIL import Image

from rarl.data.images import BadImage, decode_image
from rarl.data.parquet import ParquetRows
from rarl.errors import UserError
from rarl.evaluation.measurements import questions_of
from rarl.evaluation.report.gather import PLACED, Report
from rarl.replies.boxes import LONGEST_LABEL
from rarl.samples import Sample
from rarl.schema import Box, Example, Frame

MOST_EXAMPLES = 500
TEXT_BUDGET = 3_500_000  # characters of replies in the page
LONGEST_TEXT = 4000  # of one
CUT = " … [cut here; the whole reply is in evaluation/]"
THINKING = re.compile(r"<think>(.*?)(?:</think>|$)", re.DOTALL)
LARGEST_SIDE = 192  # pixels of a picture, which is shown with 176
LARGE = 3  # pictures of a question that have that size; more have the area of so many together
QUALITY = 50  # of WebP: 500 pictures of noise, the worst case, come to 10 MB


@dataclass(frozen=True)
class Asked:
    """One question with the models' replies, by position in `Report.models`; None if a model was
    not asked it."""

    data_set: str
    replies: list[Sample | None]

    @property
    def example(self) -> Example:
        """What all were asked."""
        return next(reply for reply in self.replies if reply).example


def all_questions(report: Report) -> list[Asked]:
    """Returns those of the first seed, data set by data set in the order of the file."""
    found: dict[tuple[str, ...], Asked] = {}
    for position, model in enumerate(report.models):
        for data_set in report.data_sets:
            replies = model.replies.get(data_set, {}).get(report.example_seed, [])
            for question, reply in zip(questions_of(replies), replies, strict=True):
                new = Asked(data_set, [None] * len(report.models))
                found.setdefault((data_set, *question), new).replies[position] = reply
    return sorted(found.values(), key=lambda one: report.data_sets.index(one.data_set))  # stable


def choose(report: Report, questions: list[Asked], most: int = MOST_EXAMPLES) -> list[Asked]:
    """Returns those on which the best model fails, then those on which models differ, then the
    rest; data sets take turns."""
    best = report.models.index(report.best)
    turns: dict[tuple[int, str], int] = {}
    ranked = []
    for one in questions:
        right = [reply.rewards["correct"] for reply in one.replies if reply]
        own = one.replies[best]
        kind = 0 if own and not own.rewards["correct"] else 1 if len(set(right)) > 1 else 2
        turn = turns[kind, one.data_set] = turns.get((kind, one.data_set), 0) + 1
        ranked.append((kind, turn, one))
    return [one for _, _, one in sorted(ranked, key=lambda rank: rank[:2])][:most]


def examples_json(report: Report) -> dict[str, Any]:
    """Returns what the page's script reads: models, pictures by key, examples, and how many there
    would have been. Texts are cut so that all together keep within `TEXT_BUDGET`."""
    questions = all_questions(report)
    chosen = choose(report, questions)
    pairs = dict.fromkeys((one.data_set, one.example.image_id) for one in chosen)
    # one key for each picture, however many questions are about it
    pictures = {pair: str(number) for number, pair in enumerate(pairs)}
    replies = [reply for one in chosen for reply in one.replies if reply]
    lengths = [len(one.rollout.text) for one in replies]
    lengths += [len(one.verdict.reason) for one in replies if one.verdict]
    longest = LONGEST_TEXT
    while longest > 100 and sum(min(length, longest) for length in lengths) > TEXT_BUDGET:
        longest = longest * 3 // 4
    shown = {one.data_set for one in chosen}
    return {
        "models": [model.name for model in report.models],
        "best": report.best.name,
        "dataSets": [name for name in report.data_sets if name in shown],
        "total": len(questions),
        "images": embed_pictures(report, pictures),
        "examples": [entry(one, pictures, longest) for one in chosen],
    }


def entry(one: Asked, pictures: dict[tuple[str, str], str], longest: int) -> dict[str, Any]:
    """Returns one question. `facts` are the fields of its example that have no place of their
    own."""
    known = one.example
    further = [each.name for each in fields(known) if each.name not in PLACED]
    facts = {name: value for name in further if (value := getattr(known, name)) not in (None, "")}
    return {
        "id": known.id,
        "image": pictures[one.data_set, known.image_id],
        "imageId": known.image_id,
        "labels": [shorten(label, LONGEST_LABEL) for label in known.image_labels or ()],
        "dataSet": one.data_set,
        "type": known.answer_type,
        "question": shorten(known.question, LONGEST_TEXT),
        "options": known.options and list(known.options),
        "reference": shorten(known.answer, LONGEST_TEXT),
        "rationale": shorten(known.rationale or "", longest),
        "known": shorten(" ".join(known.facts or ()), longest),
        "boxes": drawn_boxes(known.boxes, drawn_frame(one)),
        "facts": {name: shorten(str(value), longest) for name, value in facts.items()},
        "replies": [reply and reply_entry(reply, longest) for reply in one.replies],
    }


def reply_entry(sample: Sample, longest: int) -> dict[str, Any]:
    """Returns one reply. The whole of it is shown only if it has not the form that was asked
    for."""
    text, reply, verdict = sample.rollout.text, sample.reply, sample.verdict
    thinking = THINKING.search(text)
    well_formed = bool(sample.rewards["well_formed"])
    shown = shorten(thinking[1].strip(), longest) if thinking and well_formed else None
    return {
        "correct": bool(sample.rewards["correct"]),
        "answer": None if reply.answer is None else shorten(reply.answer, longest),
        "boxes": drawn_boxes(sample.boxes, sample.prompt.frame),
        "thinking": shown,
        "raw": None if well_formed else shorten(text, longest),
        "reasoning": finite(sample.rewards["reasoning"]),
        "judge": verdict
        and {
            "status": verdict.status,
            "correctness": finite(verdict.correctness),
            "explanation": finite(verdict.explanation),
            "reason": shorten(verdict.reason, longest),
        },
    }


def drawn_frame(one: Asked) -> Frame | None:
    """Returns the frame of a question's image, which tells how large it is."""
    frames = (reply.prompt.frame for reply in one.replies if reply)
    return next((frame for frame in frames if frame), None)


def drawn_boxes(boxes: Sequence[Box] | None, frame: Frame | None) -> list[list[Any]]:
    """Returns [label, left, top, width, height] of each box that can be drawn, in shares of the
    image's sides, cut at its edges."""
    found: list[list[Any]] = []
    for box in boxes or ():
        if frame is None or not all(map(math.isfinite, box.corners)):
            continue
        sides = (frame.width, frame.height) * 2
        cut = (min(max(at / side, 0.0), 1.0) for at, side in zip(box.corners, sides, strict=True))
        left, top, right, bottom = cut
        if left < right and top < bottom:
            its = (left, top, right - left, bottom - top)
            found.append([shorten(box.label, LONGEST_LABEL), *(round(share, 4) for share in its)])
    return found


def embed_pictures(report: Report, keys: dict[tuple[str, str], str]) -> dict[str, list[str]]:
    """Returns the data URLs of each question's images by key, in order; none for a question of
    text. What cannot be found or decoded any more is left out, and the page says so."""
    embedded: dict[str, list[str]] = {}
    for data_set in report.data_sets:
        source = open_rows(report, data_set)
        if source is not None:
            rows = {image_id: row for row, image_id in enumerate(source.column("image_id"))}
            wanted = {rows[i]: key for (d, i), key in keys.items() if d == data_set and i in rows}
            # ascending and one at a time: row groups of photographs are large
            for row in sorted(wanted):
                with suppress(BadImage):
                    embedded[wanted[row]] = thumbnails(source.read([row])[0].images)
    return embedded


def open_rows(report: Report, data_set: str) -> ParquetRows | None:
    """Returns the measured data of the examples' seed, if they are still to be found."""
    for run in report.runs:
        if run.seed == report.example_seed and data_set in run.measured:
            with suppress(UserError):
                return ParquetRows(run.eval_path(data_set))
    return None


def thumbnails(images: Sequence[bytes]) -> list[str]:
    """Returns a small picture of each image as a data URL. Raises BadImage for one that cannot be
    decoded."""
    side = round(LARGEST_SIDE * math.sqrt(min(1.0, LARGE / max(1, len(images)))))
    return [thumbnail(decode_image(encoded), side) for encoded in images]


def thumbnail(image: Image.Image, side: int) -> str:
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def shorten(text: str, longest: int) -> str:
    """Returns a text that says where it was cut."""
    return text if len(text) <= longest else text[:longest] + CUT


def finite(value: float | None) -> float | None:
    """Returns a number for JSON, which has no NaN."""
    return None if value is None or not math.isfinite(value) else round(value, 4)


def safe_json(value: Any) -> str:
    """Returns JSON that no text in it can end: it is put between script tags, where `</script>` or
    `<!--` would be read as HTML; U+2028 and U+2029 end lines for older readers."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
