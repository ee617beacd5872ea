"""Hard negatives: questions that words alone do not answer, since something near has another
answer."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rarl.prepare.fingerprint import answer_key, bits_apart, text_key
from rarl.prepare.floors import WORD

NEAREST = 0.25  # of the questions that another image answers otherwise, those with the nearest one
ALIKE = 0.6  # cosine of TF-IDF over words from which two wordings are near
ROWS_AT_ONCE = 256  # that are compared with all images of which the same is asked
BITS = 256  # of a look


def hard_negatives(
    questions: Sequence[str],
    answers: Sequence[str],
    images: Sequence[str],
    looks: NDArray[np.uint64],
) -> NDArray[np.bool_]:
    """Returns which rows are hard, shape (n,). Such a row has a partner with another answer: the
    same question about another image that looks like its own, of all rows with such a partner the
    quarter with the nearest one; or a question in near words about the same image. `images` are
    identities, `looks` the 256 bits of each row's image, shape (n, 4)."""
    keys = [(text_key(q), answer_key(a)) for q, a in zip(questions, answers, strict=True)]
    distances = other_answer_distances(keys, images, looks)
    known = distances[distances < BITS + 1]
    hard = distances <= (np.quantile(known, NEAREST) if len(known) else -1)
    return hard | near_wordings(keys, images)


def other_answer_distances(
    keys: Sequence[tuple[str, str]], images: Sequence[str], looks: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Returns for each row the bits by which the nearest other image differs of which the same is
    asked with another answer; BITS + 1 where there is none."""
    nearest = np.full(len(keys), BITS + 1, np.int64)
    asked: dict[str, list[int]] = defaultdict(list)
    for row, (question, _) in enumerate(keys):
        asked[question].append(row)
    for rows in asked.values():
        answers = np.unique([keys[row][1] for row in rows], return_inverse=True)[1]
        pictures = np.unique([images[row] for row in rows], return_inverse=True)[1]
        own = looks[rows]
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            bits = bits_apart(own[part], own)
            same = (answers[part, None] == answers) | (pictures[part, None] == pictures)
            bits[same] = BITS + 1
            nearest[rows[part]] = bits.min(axis=1)
    return nearest


def near_wordings(keys: Sequence[tuple[str, str]], images: Sequence[str]) -> NDArray[np.bool_]:
    """Returns which rows ask in near words what another one asks about the same image with another
    answer."""
    found = np.zeros(len(keys), bool)
    for pair in near_pairs([question for question, _ in keys], images):
        if keys[pair[0]][1] != keys[pair[1]][1]:
            found[list(pair)] = True
    return found


def near_pairs(questions: Sequence[str], images: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yields every two rows that are about the same image and ask in near words, not in the same;
    `questions` are in the form in which equal ones are equal."""
    distinct = sorted(set(questions))
    if not any(re.search(WORD, question) for question in distinct):
        return
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes a second to import

    vectorizer = TfidfVectorizer(token_pattern=WORD, sublinear_tf=True)
    vectors = vectorizer.fit_transform(distinct)
    place = {question: number for number, question in enumerate(distinct)}
    about: dict[str, list[int]] = defaultdict(list)
    for row, image in enumerate(images):
        about[image].append(row)
    for rows in (its for its in about.values() if len(its) > 1):
        words = [place[questions[row]] for row in rows]
        own = vectors[words]
        other = np.not_equal.outer(words, words)
        alike = np.triu(((own @ own.T).toarray() >= ALIKE) & other)
        yield from ((rows[i], rows[j]) for i, j in np.argwhere(alike).tolist())
