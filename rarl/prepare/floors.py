"""What can be scored without looking: the floors that a model must beat.

majority: the most frequent training answer of each answer type. nearest: the answer of the most
similar training question (cosine of TF-IDF over words and pairs of words). Right means equal but
for case, punctuation and blanks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rarl.prepare.fingerprint import text_key

WORD = r"\w+"
ROWS_AT_ONCE = 512  # questions compared with all training questions


@dataclass(frozen=True)
class Asked:
    question: str
    answer: str
    answer_type: str
    image_id: str


@dataclass(frozen=True)
class Floor:
    """Shares in [0, 1] of `n` questions."""

    answer_type: str
    n: int
    majority: float
    nearest: float


def floors(train: Sequence[Asked], test: Sequence[Asked]) -> list[Floor]:
    """By answer type, in their order of frequency. Both need at least one question."""
    common = {kind: most_common(train, kind) for kind in {asked.answer_type for asked in test}}
    nearest = nearest_answers(
        [t.question for t in train], [t.answer for t in train], [t.question for t in test]
    )
    right_common = np.array([text_key(t.answer) == common[t.answer_type] for t in test])
    right_nearest = np.array(
        [text_key(t.answer) == text_key(a) for t, a in zip(test, nearest, strict=True)]
    )
    kinds = np.array([t.answer_type for t in test])
    found = []
    for kind, count in Counter(kinds.tolist()).most_common():
        of_kind = kinds == kind
        majority, near = float(right_common[of_kind].mean()), float(right_nearest[of_kind].mean())
        found.append(Floor(kind, count, majority, near))
    return found


def most_common(train: Sequence[Asked], kind: str) -> str | None:
    counts = Counter(text_key(asked.answer) for asked in train if asked.answer_type == kind)
    return counts.most_common(1)[0][0] if counts else None


def nearest_answers(known: list[str], answers: list[str], questions: list[str]) -> list[str]:
    """For each question the answer of the known one that is most like it; the first of equals, also
    where not one of them holds a word."""
    if not any(re.search(WORD, question) for question in known):
        return answers[:1] * len(questions)
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes a second to import

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=WORD, sublinear_tf=True)
    vectors = vectorizer.fit_transform(known)
    found = []
    for start in range(0, len(questions), ROWS_AT_ONCE):
        likeness = vectorizer.transform(questions[start : start + ROWS_AT_ONCE]) @ vectors.T
        best = np.asarray(likeness.argmax(axis=1)).ravel()
        found += [answers[i] for i in best]
    return found


def hold_out(asked: Sequence[Asked], seed: int = 0) -> tuple[list[Asked], list[Asked]]:
    """A fifth of the images with their questions as test, where a data set has none."""
    images = sorted({one.image_id for one in asked})
    chosen = {
        images[i]
        for i in np.random.default_rng(seed).permutation(len(images))[: max(1, len(images) // 5)]
    }
    return [a for a in asked if a.image_id not in chosen], [
        a for a in asked if a.image_id in chosen
    ]
