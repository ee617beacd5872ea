"""Whether the answers of a data set follow a group, such as the hospital that an image comes from:
a model that recognises the hospital then needs not look at what is asked for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rarl.data.parquet import ParquetRows
from rarl.intervals import holm, p_in_words
from rarl.prepare.fingerprint import text_key
from rarl.prepare.floors import FloorQuestion, hold_out, majority_answers, read_questions

MOST_GROUPS = 12  # of a further column, such as wards; more are no groups, such as ages
# Training answers to a question in a group, from which its most frequent one there counts.
FEWEST_ANSWERS = 5
CERTAIN = 0.05


class Followed(NamedTuple):
    """What a column is worth without an image: the shares in [0, 1] of test questions that are
    answered right by the most frequent training answer to the same question, over all groups and in
    the question's own. `p` is how likely chance alone brings the second so far above the first,
    corrected for the columns that were looked at."""

    column: str
    questions: int
    over_all: float
    in_group: float
    p: float

    @property
    def is_clear(self) -> bool:
        """Whether answers follow the column by more than chance."""
        return self.p < CERTAIN

    def told(self) -> str:
        """Returns the warning."""
        p = p_in_words(self.p)
        return (
            f"ANSWERS FOLLOW '{self.column}': the most frequent answer to the same question in its "
            f"own group is right in {100 * self.in_group:.1f} % of {self.questions:,} test "
            f"questions, that of all groups in {100 * self.over_all:.1f} % ({p}). A model may "
            f"learn to tell the groups apart instead of what is asked; `rarl eval RUN --by "
            f"{self.column}` compares them"
        )


def follows(asked: Mapping[str, Sequence[FloorQuestion]]) -> list[Followed]:
    """Returns what each column is worth that tells groups, `site` first; `asked` are the questions
    of the splits by name. Training answers are held against the test split, or, where there is none
    or where it is of other groups, against a fifth of the images."""
    everything = [one for questions in asked.values() for one in questions]
    found = []
    for column in group_columns(everything):
        train, test = asked.get("train", []), asked.get("test", [])
        known = {group_of(one, column) for one in train} - {None}
        if not known & {group_of(one, column) for one in test}:
            train, test = hold_out(train or everything)
        if one := follow(train, test, column):
            found.append(one)
    return corrected(found)


def follow_lines(files: Sequence[Path]) -> Iterator[str]:
    """Yields a warning for each column that the answers of a data set follow, whose splits are
    these files; several data sets each for itself, by their folders."""
    folders: dict[Path, dict[str, list[FloorQuestion]]] = defaultdict(dict)
    for file in files:
        folders[file.parent][file.stem] = read_questions(ParquetRows(file))
    for folder, asked in folders.items():
        where = f"{folder}: " if len(folders) > 1 else ""
        yield from (f"{where}{one.told()}" for one in follows(asked) if one.is_clear)


def group_columns(questions: Sequence[FloorQuestion]) -> list[str]:
    """Returns the columns that part questions into groups: `site`, and further columns of a table
    of the user's own that have few values."""
    values: dict[str, set[str]] = {"site": set()}
    for one in questions:
        for name, value in {"site": one.site, **(one.extra or {})}.items():
            if value is not None:
                values.setdefault(name, set()).add(value)
    return [
        name
        for name, known in values.items()
        if len(known) > 1 and (name == "site" or len(known) <= MOST_GROUPS)
    ]


def group_of(question: FloorQuestion, column: str) -> str | None:
    """Returns the group that a question belongs to."""
    return question.site if column == "site" else (question.extra or {}).get(column)


def follow(
    train: Sequence[FloorQuestion], test: Sequence[FloorQuestion], column: str
) -> Followed | None:
    """Returns what a column is worth, with a p-value of its own; None without test questions about
    other images than the training ones. It is that of the sign test over patients, or images where
    these are not known: of those whom the groups' own answers serve otherwise than all groups'
    answers do, as many are served better as worse where answers do not follow the column."""
    from scipy.stats import binomtest  # takes half a second to import

    trained = {one.image_id for one in train}
    test = [
        one for one in test if group_of(one, column) is not None and one.image_id not in trained
    ]
    if not train or not test:
        return None
    answers = [question_answers(train, test), question_answers(train, test, column)]
    right = [
        [one.is_answered_by(given) for given, one in zip(own, test, strict=True)] for own in answers
    ]
    moved: dict[str, int] = defaultdict(int)
    for one, before, after in zip(test, *right, strict=True):
        moved[one.unit] += after - before
    better, worse = (sum(sign * way > 0 for way in moved.values()) for sign in (1, -1))
    if column != "site" and not better + worse:  # such as a question's type, which goes with it
        return None
    p = binomtest(better, better + worse, alternative="greater").pvalue if better else 1.0
    over_all, in_group = (sum(own) / len(test) for own in right)
    return Followed(column, len(test), over_all, in_group, float(p))


def corrected(found: Sequence[Followed]) -> list[Followed]:
    """Returns the same with p-values that are corrected for their number."""
    adjusted = holm([one.p for one in found])
    return [one._replace(p=p) for one, p in zip(found, adjusted, strict=True)]


def question_answers(
    train: Sequence[FloorQuestion], asked: Sequence[FloorQuestion], column: str = ""
) -> list[str | None]:
    """Returns for each question the most frequent training answer to the same question, whatever
    the case and punctuation; of a question with options, the option that is most often an answer.
    With a column, that in its own group, where it was asked there at least FEWEST_ANSWERS times.
    Where the question is new, it is that of its answer type, see `majority_answers`."""
    counts: dict[tuple[str, str, str | None], Counter[str]] = defaultdict(Counter)
    spelled: dict[str, str] = {}
    for one in train:
        answer = text_key(one.answer)
        spelled.setdefault(answer, one.answer)
        for group in {None, group_of(one, column) if column else None}:
            counts[text_key(one.question), one.answer_type, group][answer] += 1
    found: list[str | None] = []
    for one, other in zip(asked, majority_answers(train, asked), strict=True):
        key = (text_key(one.question), one.answer_type)
        own = counts.get((*key, group_of(one, column) if column else None), Counter())
        if own.total() < FEWEST_ANSWERS:
            own = counts.get((*key, None), Counter())
        if own and one.options:
            votes = [own[text_key(option)] for option in one.options]
            found.append(one.options[votes.index(max(votes))])
        else:
            found.append(spelled[own.most_common(1)[0][0]] if own else other)
    return found
