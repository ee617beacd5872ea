"""What a measurement is, where its replies lie, and how those that are not there yet are made.

A measurement is a key, and its replies are Parquet files in the folder of that key, one file for
each finished batch. To continue one is to ask for what is not there.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rarl.collect import Collector
from rarl.config import Config, JudgeConfig
from rarl.data.order import sampling_seed
from rarl.data.parquet import ParquetRows
from rarl.data.stream import PreparerSettings, ordered_stream, unpack
from rarl.errors import UserError
from rarl.files import replacing, replacing_folder, write_text
from rarl.judge.candidate import candidate_of, judged_image
from rarl.judge.judge import Judge
from rarl.look import Looker
from rarl.rollout.sampler import SamplingSettings
from rarl.samples import Group, Sample, flatten, read_samples, to_table
from rarl.schema import PreparedExample
from rarl.system.placement import REQUESTS_PER_ACTOR

JUDGED_AT_ONCE = 256  # replies that were made before
QUESTIONS_PER_FILE = 64  # what a stop loses at most, and the longest of their replies decides when
FINISHED = "_SUCCESS"  # an empty file beside the parts once all are there, as Spark leaves it
Stored = TypeVar("Stored")  # what is kept of a question
QuestionKey = tuple[str, str, str]  # id, question, reference answer


@dataclass(frozen=True)
class Measurement:
    """The key of a measurement. `model` is "base" or "trained"; `prompt` is a family of wordings;
    `control` is "none", "blank", "shuffled", "text" or a kind of second look; `samples` are the
    replies to each question, greedy if there is one; `judge` is "none", "rules" or a name, see
    `judge_name`."""

    model: str
    data: str
    prompt: str
    control: str = "none"
    samples: int = 1
    judge: str = "none"


def own_measurement(config: Config, model: str, data: str) -> Measurement:
    """Returns the key of what a run measures by itself, before and after training."""
    judge = judge_name(config.judge, config.judge)
    return Measurement(model, data, config.prompts.eval, judge=judge)


def judge_name(judge: JudgeConfig, own: JudgeConfig) -> str:
    """Returns the judge's name in a key: its model or its backend, with what is unusual of how it
    is asked, and with the address if that is another one than the run's own judge has; "none" if
    measurements are not judged."""
    if not judge.evaluate:
        return "none"
    name = judge.model or judge.backend
    if judge.rubric != "checklist":
        name += f", {judge.rubric}"
    if judge.image:
        name += ", seeing"
    return name if judge.backend == "rules" or judge.url == own.url else f"{name}@{judge.url}"


def folder_of(root: Path, key: Any) -> Path:
    """Returns the folder of a key, which may be any dataclass: one level for each field, as Hive
    partitions, with values percent-encoded."""
    levels = [(one.name, quote(str(getattr(key, one.name)), safe="")) for one in fields(key)]
    return root.joinpath(*(f"{name}={value}" for name, value in levels))


def marker_of(root: Path, key: Any) -> Path:
    """Returns the file that is there once all of a key's measurement is."""
    return folder_of(root, key) / FINISHED


def finished_measurements(evaluation: Path) -> list[Measurement]:
    """Returns the keys of all measurements that are complete."""
    found = []
    levels = "/".join(f"{one.name}=*" for one in fields(Measurement))
    for marker in sorted(evaluation.glob(f"{levels}/{FINISHED}")):
        parts = (part.partition("=") for part in marker.parent.relative_to(evaluation).parts)
        values: dict[str, Any] = {name: unquote(value) for name, _, value in parts}
        found.append(Measurement(**values | {"samples": int(values["samples"])}))
    return found


def read_finished(evaluation: Path, key: Measurement) -> list[Sample] | None:
    """Returns the replies in the order of the questions; None if they are not complete."""
    marker = marker_of(evaluation, key)
    if not marker.exists():
        return None
    return [sample for part in parts_of(marker.parent) for sample in read_samples(part)]


def count_questions(evaluation: Path, key: Measurement) -> int:
    """Returns how many questions a measurement holds replies to."""
    parts = parts_of(folder_of(evaluation, key))
    return sum(pq.ParquetFile(part).metadata.num_rows for part in parts) // key.samples


def require_readable(run: Path) -> None:
    """Raises UserError if all that `run` holds was measured by an earlier version, which kept each
    measurement in a file."""
    evaluation = run / "evaluation"
    if not finished_measurements(evaluation) and any(evaluation.glob("*.parquet")):
        raise UserError(
            f"{run}: was measured by an earlier version of RARL, whose files in evaluation/ are "
            f"not read any more; `rarl eval {run}` measures again"
        )


def parts_of(folder: Path) -> list[Path]:
    """Returns the files of a measurement, in the order of the questions."""
    return sorted(folder.glob("[0-9]*.parquet"))


def part_path(folder: Path, place: int) -> Path:
    """Returns the file for the replies to the questions from `place` on."""
    return folder / f"{place:08d}.parquet"


def write_part(path: Path, samples: Sequence[Sample]) -> None:
    """Writes replies, whole or not at all, with the answer that was read from each as a further
    column."""
    answers = pa.array([one.reply.answer for one in samples], pa.string())
    with replacing(path) as temporary:
        pq.write_table(to_table(samples).append_column("reply/answer", answers), temporary)


def questions_of(samples: Iterable[Sample]) -> list[QuestionKey]:
    """Returns what each reply is about."""
    return [(one.example.id, one.example.question, one.example.answer) for one in samples]


@dataclass(frozen=True)
class Exam:
    """What a measurement asks: a data set's usable rows in order, and how replies are drawn.

    `image_rows` are the rows whose images are shown instead, None for the own ones. With a `looker`
    the preparer asks where to look, and it asks the questions. Seeds are a function of `seed` and a
    question's place among the rows.
    """

    preparer: PreparerSettings
    rows: NDArray[np.int64]
    sampling: SamplingSettings
    seed: int = 0
    image_rows: NDArray[np.int64] | None = None
    show_image: bool = True
    looker: Looker | None = None

    @cached_property
    def questions(self) -> list[QuestionKey]:
        """The questions in order, read without their images."""
        source = ParquetRows(self.preparer.data_path)
        columns = [source.column(name) for name in ("id", "question", "answer")]
        return [(columns[0][row], columns[1][row], columns[2][row]) for row in self.rows]

    def places_of(self, stored: Iterable[QuestionKey], folder: Path) -> list[int]:
        """Returns the place of each stored question; if the data repeat one, the n-th is the n-th.
        Raises UserError for a question that the exam does not have."""
        free: dict[QuestionKey, deque[int]] = defaultdict(deque)
        for place, question in enumerate(self.questions):
            free[question].append(place)
        places = []
        for question in stored:
            if not free[question]:
                raise UserError(
                    f"{folder}: holds a reply to question '{question[0]}', which the data do not "
                    "ask in these words: they have changed under the same name; delete that folder "
                    "to begin anew, or give the data another name"
                )
            places.append(free[question].popleft())
        return places

    def batches(
        self, places: Sequence[int], size: int
    ) -> Iterator[tuple[list[int], list[PreparedExample]]]:
        """Yields the examples at these places, prepared, up to `size` at once that follow each
        other."""
        for run in runs_of(places, len(self.rows)):
            others = None if self.image_rows is None else self.image_rows[run]
            stream = ordered_stream(self.preparer, self.rows[run], others)
            for batch in stream.iter_batches(batch_size=size, batch_format="pyarrow"):
                prepared = unpack(batch)
                yield run[: len(prepared)], prepared
                run = run[len(prepared) :]


def runs_of(places: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yields ascending places in pieces of at most `most` that follow each other without a gap."""
    run: list[int] = []
    for place in places:
        if run and (place != run[-1] + 1 or len(run) == most):
            yield run
            run = []
        run.append(place)
    if run:
        yield run


@dataclass
class MeasurementProgress:
    """How far a measurement is: the groups on disk by place, the files that are to be written once
    the judge has been asked (with the places that each holds), and the places without replies, for
    which engines are needed."""

    key: Measurement
    folder: Path
    exam: Exam
    groups: dict[int, Group]
    waiting: dict[Path, list[int]]
    missing: list[int]

    @property
    def is_finished(self) -> bool:
        """Whether all replies are there, and judged."""
        return not self.waiting and not self.missing and (self.folder / FINISHED).exists()

    @property
    def samples(self) -> list[Sample]:
        """The replies that are there, in the order of the questions."""
        return flatten(self.groups[place] for place in sorted(self.groups))


def look_up(key: Measurement, evaluation: Path, exam: Exam) -> MeasurementProgress:
    """Returns what is on disk of a measurement. Replies that lie under another judge count: they
    are judged anew, and not asked for again. Files whose questions have other places by now, since
    the data have further ones, are laid anew. Raises UserError if the questions have changed."""
    folder = folder_of(evaluation, key)
    groups: dict[int, Group] = {}
    waiting: dict[Path, list[int]] = {}
    stored = read_groups(folder, exam)
    if not are_in_place(stored):
        whole = {place: one for part in stored.values() for place, one in part.items()}
        lay_anew(folder, whole, lambda path, groups: write_part(path, flatten(groups)))
        stored = read_groups(folder, exam)
    for path, part in stored.items():
        groups |= part
        if key.judge != "none" and any(is_unjudged(one) for one in flatten(part.values())):
            waiting[path] = list(part)
    borrowed: dict[int, Group] = {}
    for other in sorted(folder.parent.glob("judge=*")):
        for part in read_groups(other, exam).values() if other != folder else ():
            for place in part.keys() - groups.keys():
                borrowed[place] = [replace(one, verdict=None) for one in part[place]]
    for run in runs_of(sorted(borrowed), JUDGED_AT_ONCE):
        waiting[part_path(folder, run[0])] = run
    groups |= borrowed
    missing = [place for place in range(len(exam.rows)) if place not in groups]
    return MeasurementProgress(key, folder, exam, groups, waiting, missing)


def read_groups(folder: Path, exam: Exam) -> dict[Path, dict[int, Group]]:
    """Returns the groups of each file of a folder by their places in the exam."""
    parts = {path: in_groups(read_samples(path)) for path in parts_of(folder)}
    first = [group[0] for groups in parts.values() for group in groups]
    places = iter(exam.places_of(questions_of(first), folder))
    return {path: {next(places): group for group in groups} for path, groups in parts.items()}


def are_in_place(parts: Mapping[Path, Iterable[int]]) -> bool:
    """Tells whether every file is named after the place of its first question, and its others
    follow that without a gap: then no file's name is in the way of replies that are missing, and
    the files' order is that of the questions."""
    listed = {path: list(places) for path, places in parts.items()}
    return all(
        list(range(int(path.stem), int(path.stem) + len(places))) == places
        for path, places in listed.items()
    )


def lay_anew(
    folder: Path, stored: Mapping[int, Stored], write: Callable[[Path, list[Stored]], Any]
) -> None:
    """Writes all that a measurement has stored by place to files of their places, which `write`
    makes, in the place of the old ones. It is not finished then, since questions may be missing."""
    with replacing_folder(folder) as laid:
        for run in runs_of(sorted(stored), QUESTIONS_PER_FILE):
            write(part_path(laid, run[0]), [stored[place] for place in run])


def in_groups(samples: Iterable[Sample]) -> list[Group]:
    """Returns the replies question by question; those to a question lie together."""
    groups: list[Group] = []
    for sample in samples:
        if sample.number == 0:
            groups.append([])
        groups[-1].append(sample)
    return groups


def is_unjudged(sample: Sample) -> bool:
    """Tells whether no judge has thought about a reply."""
    return sample.verdict is None or sample.verdict.status == "unreachable"


def uris_of(exam: Exam, places: Iterable[int]) -> dict[int, str]:
    """Returns the images of the questions at these places, as a judge that sees is shown them."""
    found: dict[int, str] = {}
    for run, prepared in exam.batches(sorted(places), JUDGED_AT_ONCE):
        shown = (judged_image(one.pixels) for one in prepared)
        found |= {place: image for place, image in zip(run, shown, strict=True) if image}
    return found


def complete(
    progress: MeasurementProgress,
    collector: Collector | None,
    judge: Judge | None,
    advance: Callable[[int], Any],
) -> list[Sample]:
    """Makes what is missing, writes it batch by batch, and returns all replies in the order of the
    questions. `advance(n)` is called for every n questions done. The collector may be None if no
    reply is missing; the adapter is the one that its samplers hold."""
    key, exam, groups = progress.key, progress.exam, progress.groups
    # The data may have further questions than those that were finished.
    marker = progress.folder / FINISHED
    marker.unlink(missing_ok=True)
    advance(len(groups) - sum(map(len, progress.waiting.values())))
    for path, places in progress.waiting.items():
        unjudged = [(place, one) for place in places for one in groups[place] if is_unjudged(one)]
        if judge is not None and unjudged:
            images = uris_of(exam, {place for place, _ in unjudged}) if judge.sees else {}
            asked = [
                candidate_of(one.example, one.prompt, one.rollout.text, images.get(place))
                for place, one in unjudged
            ]
            for (_, sample), verdict in zip(unjudged, judge.score(asked), strict=True):
                sample.verdict = verdict
        write_part(path, flatten(groups[place] for place in places))
        advance(len(places))
    if progress.missing:
        assert collector is not None, "replies are missing, and there is nobody to ask"
        size = REQUESTS_PER_ACTOR * len(collector.pool.actors)
        for places, prepared in exam.batches(progress.missing, size):
            if exam.looker is not None:
                prepared = exam.looker.look(collector.pool, prepared, key.model != "base")
            seeds = [sampling_seed(exam.seed, 0, place, key.samples) for place in places]
            asking = (exam.sampling, key.model != "base", exam.show_image)
            pending = collector.submit(prepared, seeds, *asking)
            for part in pending.parts(QUESTIONS_PER_FILE):
                new, its = part.result(), places[: len(part.prompts)]
                for sample in flatten(new):
                    sample.prepared = None  # with the pixels
                groups |= zip(its, new, strict=True)
                write_part(part_path(progress.folder, its[0]), flatten(new))
                advance(len(its))
                places = places[len(its) :]
    write_text(marker, "")
    return progress.samples
