"""What `rarl prepare --facts siblings` makes of a data set: how many questions become sentences,
how many rows get facts, and sentences drawn at random, for somebody to judge.

    python bench/facts.py data/vqa-rad/train.parquet 60
"""

from __future__ import annotations

import sys

import numpy as np

from rarl.data.parquet import ParquetRows
from rarl.prepare.facts import find_facts, read_questions
from rarl.prepare.statements import state


def main(path: str, shown: int) -> None:
    """Prints shares of the rows, and `shown` sentences with their questions."""
    rows = ParquetRows(path)
    questions = read_questions(rows, range(len(rows)))
    stated = [(one, state(one.question, one.answer)) for one in questions]
    known = [(one, statement) for one, statement in stated if statement is not None]
    print(f"{len(known) / len(rows):.1%} of {len(rows):,} questions become sentences")
    counts = np.array([len(known.facts) for known in find_facts(questions, siblings=True)])
    for least in (1, 3):
        print(f"{np.mean(counts >= least):.1%} have at least {least} facts")
    drawn = np.random.default_rng(0).permutation(len(known))[:shown]
    for number, index in enumerate(drawn, start=1):
        one, statement = known[index]
        print(f"{number}. {one.question} → {one.answer}   {statement.sentence}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0)
