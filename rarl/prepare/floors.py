"""What can be scored without looking at an image, which a model must beat: the most frequent
training answer of an answer type, and the answer of the most similar training question."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rarl.data.parquet import ParquetRows
from rarl.prepare.fingerprint import text_key
from rarl.replies.answers import is_right

WORD = r"\w+"
ROWS_AT_ONCE = 512  # questions compared with all training questions


class FloorQuestion(NamedTuple):
    question: str
    answer: str
    answer_type: str
    image_id: str
    options: Sequence[str] | None = None
    patient: str | None = None
    site: str | None = None
    extra: Mapping[str, str | None] | None = None
    also_right: Sequence[str] | None = None

    def is_answered_by(self, given: str | None) -> bool:
        """Whether an answer is right, graded as a reply's is."""
        return is_right(
            given,
            self.answer,
            self.answer_type,
            options=self.options,
            also_right=self.also_right,
        )

    @property
    def unit(self) -> str:
        """Whose question it is: the patient's where known, or else the image's."""
        return self.image_id if self.patient is None else f"patient {self.patient}"


def read_questions(rows: ParquetRows) -> list[FloorQuestion]:
    """Returns all questions of a data set, in its order."""
    columns = {name: rows.column(name) for name in FloorQuestion._fields}
    columns["extra"] = [dict(row or ()) for row in columns["extra"]]
    return [FloorQuestion(*values) for values in zip(*columns.values(), strict=True)]


def hold_out(
    questions: Sequence[FloorQuestion], seed: int = 0
) -> tuple[list[FloorQuestion], list[FloorQuestion]]:
    """Returns the questions about four fifths of the images, and those about the rest."""
    images = sorted({one.image_id for one in questions})
    order = np.random.default_rng(seed).permutation(len(images))
    chosen = {images[i] for i in order[: max(1, len(images) // 5)]}
    train = [one for one in questions if one.image_id not in chosen]
    return train, [one for one in questions if one.image_id in chosen]


def floors(
    train: Sequence[FloorQuestion], test: Sequence[FloorQuestion]
) -> Iterator[tuple[str, int, float, float]]:
    """Yields (answer type, questions, majority, nearest) of the test questions in the order of
    frequency; the last two are shares in [0, 1] that are right, graded as replies are."""
    by_majority, by_nearest = Counter[str](), Counter[str]()
    answers = zip(majority_answers(train, test), nearest_answers(train, test), strict=True)
    for one, (common, near) in zip(test, answers, strict=True):
        by_majority[one.answer_type] += one.is_answered_by(common)
        by_nearest[one.answer_type] += one.is_answered_by(near)
    for kind, count in Counter(one.answer_type for one in test).most_common():
        yield kind, count, by_majority[kind] / count, by_nearest[kind] / count


def majority_answers(
    train: Sequence[FloorQuestion], asked: Sequence[FloorQuestion]
) -> list[str | None]:
    """Returns for each question the most frequent training answer of its answer type, whatever the
    case and punctuation; of a question with options, the option that is most often an answer. None
    without a training question of that type. Of equally frequent ones the first."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    spelled: dict[str, str] = {}
    for one in train:
        counts[one.answer_type][text_key(one.answer)] += 1
        spelled.setdefault(text_key(one.answer), one.answer)
    common = {kind: spelled[own.most_common(1)[0][0]] for kind, own in counts.items()}

    def majority(one: FloorQuestion) -> str | None:
        own = counts[one.answer_type]
        if one.options:
            return max(one.options, key=lambda option: own[text_key(option)])
        return common.get(one.answer_type)

    return [majority(one) for one in asked]


def nearest_answers(train: Sequence[FloorQuestion], asked: Sequence[FloorQuestion]) -> list[str]:
    """Returns for each question the answer of the training question that is most like it (cosine of
    TF-IDF over words and pairs of words); of equally like ones the first."""
    known = [one.question for one in train]
    if not any(re.search(WORD, question) for question in known):
        return [one.answer for one in train[:1]] * len(asked)
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes a second to import

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=WORD, sublinear_tf=True)
    vectors = vectorizer.fit_transform(known)
    found = []
    for start in range(0, len(asked), ROWS_AT_ONCE):
        part = [one.question for one in asked[start : start + ROWS_AT_ONCE]]
        likeness = vectorizer.transform(part) @ vectors.T
        found += [train[i].answer for i in np.asarray(likeness.argmax(axis=1)).ravel()]
    return found
