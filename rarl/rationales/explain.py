"""Every question is asked up to n times without its answer, until a reply is kept, and once more
with it where none was: the answer rationalised (STaR, Zelikman et al. 2022, arXiv 2203.14465).

Replies lie in OUT by what was asked, so that a start that was ended goes on where it was, and what
was answered is never asked twice. At the end OUT has the data set with its rationales, and what
became of every reply.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rarl.data.parquet import ParquetRows, write_examples
from rarl.errors import UserError
from rarl.files import replacing, write_text
from rarl.judge.client import WAS_DOWN
from rarl.prompts import has_rationale
from rarl.rationales.checks import OUTCOMES, CheckedReply, Outcome, check, known_of, usual_language
from rarl.rationales.teacher import Asking, Said, SaidCache, Teacher
from rarl.schema import Example

RATIONALES, REPLIES, FIGURES = "rationales.parquet", "replies.jsonl", "explain.json"
CACHE = "teacher.sqlite"
# Of a rationale: as a teacher gave it that was not told the answer, or was; as a clinician has
# accepted or edited it; or there is none that could be kept.
MACHINE, HINTED, CHECKED, REJECTED = ("machine", "hinted", "checked", "rejected")
NO_REPLY = "no reply"
STATUSES_GIVEN = (MACHINE, HINTED, REJECTED)  # by this command
# So many questions in a row without a reply: nobody is there, and waiting for each is no use.
LOST_AFTER = 8
TEXTS = (
    *("id", "image_id", "question", "answer", "answer_type", "options", "also_right"),
    *("modality", "rationale"),
)
SAID = ("said", "cut off")  # by a model, which tokens were spent on
GIVEN_UP: tuple[Outcome, ...] = ("unreachable", "bad image")  # for this start


@dataclass(frozen=True)
class TeacherReply:
    """One reply to a question, and what becomes of it."""

    number: int
    hinted: bool
    said: Said
    checked: CheckedReply


@dataclass
class Unexplained:
    """A question that has no rationale yet, without its image, and the replies to it so far."""

    row: int
    example: Example
    known: tuple[str, ...]
    replies: list[TeacherReply] = field(default_factory=list)

    @property
    def kept(self) -> TeacherReply | None:
        """The reply whose explanation is taken: one without a hint, where there is any."""
        kept = [one for one in self.replies if one.checked.outcome == "kept"]
        return min(kept, key=lambda one: (one.hinted, one.number), default=None)

    @property
    def is_open(self) -> bool:
        """Whether it may be asked once more."""
        given_up = any(one.checked.outcome in GIVEN_UP for one in self.replies)
        return self.kept is None and not given_up

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing more to ask in this start."""
        return not self.is_open or self.has(0, True)

    def has(self, number: int, hinted: bool) -> bool:
        return any((one.number, one.hinted) == (number, hinted) for one in self.replies)

    def status(self) -> str | None:
        """Returns the rationale's status; None where a reply could not be had."""
        if self.kept is not None:
            return HINTED if self.kept.hinted else MACHINE
        return REJECTED if self.is_open else None


class Explainer:
    """Asks `teacher` about the questions of `rows`; `attempts` is n. `ended` counts the questions
    of which nothing more is asked, by the status of their rationale, and `tokens` are those of the
    prompts and completions of all replies."""

    def __init__(
        self, data: ParquetRows, rows: Sequence[int], teacher: Teacher, attempts: int
    ) -> None:
        self.data, self.teacher = data, teacher
        self.askings = [*((number, False) for number in range(attempts)), (0, True)]
        known, self.usual = known_of(data), usual_language(data)
        examples = data.without_images(rows, TEXTS)
        pairs = zip(rows, examples, strict=True)
        self.work = [Unexplained(row, example, known[row]) for row, example in pairs]
        self.by_row = {one.row: one for one in self.work}
        self.ended: Counter[str] = Counter()
        self.tokens = [0, 0]

    def look_up(self, cache: SaidCache) -> None:
        """Takes in what was answered by an earlier start."""
        for one in self.work if len(cache) else ():
            (example,) = self.data.read([one.row])
            for number, hinted in self.askings:
                if said := cache.get(self.teacher.key_of(example, number, hinted)):
                    self.take_in(one, number, hinted, said)

    def ask(self, report: Callable[[], Any]) -> None:
        """Asks what is missing, and calls `report` at each reply. Raises UserError where the
        teacher is gone, or cannot be asked."""
        lost: list[str] = []
        for number, hinted in self.askings:
            for question, said in self.teacher.ask(self.questions(number, hinted)):
                self.take_in(self.by_row[question.row], number, hinted, said)
                report()
                lost = [*lost, said.text] if said.status == "unreachable" else []
                if len(lost) >= LOST_AFTER:
                    # Why it is down, and not that it was.
                    why = next((text for text in lost if text != WAS_DOWN), WAS_DOWN)
                    raise UserError(
                        f"the teacher {self.teacher.name} cannot be reached ({why}); what it "
                        "has answered is kept, and the same command goes on from there"
                    )

    def questions(self, number: int, hinted: bool) -> Iterator[Asking]:
        """Yields the questions of one round, each with its image's file."""
        for one in self.work:
            if one.is_open and not one.has(number, hinted):
                (example,) = self.data.read([one.row])
                key = self.teacher.key_of(example, number, hinted)
                yield Asking(key, one.row, example, number, hinted)

    def take_in(self, work: Unexplained, number: int, hinted: bool, said: Said) -> None:
        parts = self.teacher.parts(said.text) if said.status == "said" else (None, None)
        checked = check(said, parts, work.example, work.known, self.usual)
        had_ended = work.has_ended
        work.replies.append(TeacherReply(number, hinted, said, checked))
        self.tokens = [a + b for a, b in zip(self.tokens, said.tokens or (0, 0), strict=True)]
        if work.has_ended and not had_ended:
            self.ended[work.status() or NO_REPLY] += 1

    def told(self) -> str:
        """Returns in words how it goes: what is kept, and what it has cost."""
        ended = self.ended.total() or 1
        shares = (f"{100 * self.ended[one] / ended:.0f} % {one}" for one in STATUSES_GIVEN)
        return f"{', '.join(shares)}; {self.tokens[0]:,} + {self.tokens[1]:,} tokens"


@dataclass(frozen=True)
class Figures:
    """What came of a data set. `questions` are counted by the status of their rationales ("given":
    it came with the data; "not asked"; "no reply": it could not be had), `replies` by their
    outcome, without and with the answer given. `tokens` are those of prompts and completions;
    `untold` replies told none. `requests` were sent by this start, failed ones included."""

    questions: dict[str, int]
    replies: dict[str, dict[str, int]]
    tokens: tuple[int, int]
    untold: int
    requests: int

    def lines(self) -> Iterator[str]:
        """Yields what people are told at the end."""
        total, asked = sum(self.questions.values()), self.questions
        yield f"{total:,} questions: " + ", ".join(
            f"{n:,} {name}" for name, n in asked.items() if n
        )
        replies = {name: sum(counts.values()) for name, counts in self.replies.items()}
        listed = ", ".join(f"{n:,} {name}" for name, n in replies.items() if n) or "none"
        yield f"{sum(replies.values()):,} replies: {listed}"
        explained = asked[MACHINE] + asked[HINTED]
        spent = f"{self.tokens[0]:,} tokens of prompts and {self.tokens[1]:,} of completions"
        each = f", {sum(self.tokens) / explained:,.0f} for a rationale" if explained else ""
        unknown = f"; {self.untold:,} replies did not tell theirs" if self.untold else ""
        yield f"{spent}{each}{unknown}"
        if asked[NO_REPLY]:
            yield f"{asked[NO_REPLY]:,} questions got no reply; the same command asks them again"


def figures_of(work: Sequence[Unexplained], rows: int, given: int, requests: int = 0) -> Figures:
    """Returns the figures of a data set of so many rows, of which `given` had a rationale."""
    statuses = Counter(one.status() or NO_REPLY for one in work)
    statuses |= Counter({"given": given, "not asked": rows - given - len(work)})
    names = (*STATUSES_GIVEN, NO_REPLY, "given", "not asked")
    replies = [one for each in work for one in each.replies]
    told = [one.said.tokens for one in replies if one.said.tokens is not None]
    by_outcome = Counter((one.checked.outcome, one.hinted) for one in replies)
    return Figures(
        questions={name: statuses[name] for name in names},
        replies={
            name: {"without answer": by_outcome[name, False], "hinted": by_outcome[name, True]}
            for name in OUTCOMES
        },
        tokens=(sum(prompt for prompt, _ in told), sum(completion for _, completion in told)),
        untold=sum(one.said.status in SAID and one.said.tokens is None for one in replies),
        requests=requests,
    )


def without_rationale(data: ParquetRows) -> list[int]:
    """Returns the rows that have none. Raises UserError where an id stands twice, by which a
    rationale could not be found again."""
    ids = Counter(data.column("id"))
    twice = next((name for name, count in ids.items() if count > 1), None)
    if twice is not None:
        raise UserError(f"{data.path}: the id '{twice}' is there twice; prepare the data set anew")
    texts = data.column("rationale")
    return [row for row, text in enumerate(texts) if not has_rationale(text)]


def with_rationales(
    data: ParquetRows, work: Sequence[Unexplained], source: str
) -> Iterator[Example]:
    """Yields all rows, those that were asked about with what came of it."""
    by_row = {one.row: one for one in work}
    for row in range(len(data)):
        (example,) = data.read([row])
        one = by_row.get(row)
        if one is None or (status := one.status()) is None:
            yield example
            continue
        text = one.kept.checked.explanation if one.kept else None
        yield replace(example, rationale=text, rationale_source=source, rationale_status=status)


def write_out(
    out: Path, data: ParquetRows, work: Sequence[Unexplained], source: str, about: dict[str, Any]
) -> None:
    """Writes the data set with its rationales, every reply with what became of it, and the
    figures."""
    write_examples(out / RATIONALES, with_rationales(data, work, source))
    with replacing(out / REPLIES) as temporary, temporary.open("w", encoding="utf-8") as file:
        for one in work:
            for reply in one.replies:
                file.write(json.dumps(as_line(one, reply), ensure_ascii=False) + "\n")
    write_text(out / FIGURES, json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def as_line(work: Unexplained, reply: TeacherReply) -> dict[str, Any]:
    """Returns a reply for people and programs."""
    checked = reply.checked
    return {
        "id": work.example.id,
        "number": reply.number,
        "hinted": reply.hinted,
        "outcome": checked.outcome,
        "why": checked.why,
        "answer": checked.answer,
        "explanation": checked.explanation,
        "text": None if checked.explanation else reply.said.text,
        "tokens": reply.said.tokens,
    }
