"""The lines of every table: floors that need no image, base models, trained models, and what each
answers when it is asked in other ways."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, model_validator

from rarl.config import Section, load_config
from rarl.errors import UserError
from rarl.evaluation.measurements import QuestionKey, judge_name, questions_of
from rarl.evaluation.metrics import METRICS
from rarl.evaluation.ways import FLOORS, Way, floors_of, read_ways, training_data
from rarl.files import write_text
from rarl.samples import Sample
from rarl.training.run_dir import RunDir

COMPARED = "comparison.json"
BASE = "base"  # in a claim: the model before training
SECONDS = "train_seconds"  # in a claim: wall seconds of training, which are no replies' metric
Replies = dict[str, dict[int, list[Sample]]]  # data set → seed → replies, question by question


@dataclass(frozen=True)
class ComparedModel:
    """A trained model of a comparison: the folders with its measurements by seed, the family of
    prompts and the judge that these were made with, its training data by seed, which floors are
    drawn from, and the path of its base."""

    title: str
    folders: Mapping[int, Path]
    prompt: str
    judge: str = "none"
    train: Mapping[int, Path] = field(default_factory=dict)
    base: str = ""


def line_of(
    title: str, runs: Mapping[int, Path], prompt: str = "", judge: str = ""
) -> ComparedModel:
    """Returns the line of run directories by seed, as far as they were begun; `prompt` and `judge`
    are their own if they are not given."""
    begun = {seed: run for seed, run in runs.items() if RunDir(run).config.is_file()}
    configs = {seed: load_config(RunDir(run).config) for seed, run in begun.items()}
    train = {seed: training_data(configs[seed], run) for seed, run in begun.items()}
    first = next(iter(configs.values()), None)
    return ComparedModel(
        title=title,
        folders={seed: run / "evaluation" for seed, run in begun.items()},
        prompt=prompt or (first.prompts.eval if first else ""),
        judge=judge or (judge_name(first.judge, first.judge) if first else "none"),
        train={seed: path for seed, path in train.items() if path is not None},
        base=first.model.path if first else "",
    )


class PaperClaim(Section):
    """What a paper says, and the number that answers it: how far `model` is ahead of `against` in
    `metric`, on average over the data sets in `data`. Without a metric it is a sentence that no
    table answers."""

    sentence: int | str  # of the abstract, or where else it stands
    says: str  # shortened
    metric: str | None = None  # of metrics.yaml, or train_seconds
    model: str | None = None  # of the comparison
    against: str | None = None  # the same, or "base": the model before training, asked alike
    data: tuple[str, ...] = ()  # names of data sets, each of which counts alike
    # points: of the mean, in per cent, or tokens or nats where the metric has these; percent: of
    # the other's mean
    unit: Literal["points", "percent"] = "points"
    claimed: float | None = None  # in `unit`; null: more than 0, or with `less` less
    less: bool = False  # it is claimed to need or have less

    @model_validator(mode="after")
    def complete(self) -> PaperClaim:
        """Raises ValueError for a metric that there is not, or that nothing is compared in."""
        if self.metric is None:
            return self
        if self.metric not in (*METRICS, SECONDS):
            known = f"{SECONDS} or one of {', '.join(METRICS)}"
            raise ValueError(f"metric: '{self.metric}' is unknown; expected {known}")
        if self.model is None or self.against is None:
            raise ValueError(f"metric: {self.metric} needs `model` and `against`")
        if not self.data and self.metric != SECONDS:
            raise ValueError(f"metric: {self.metric} needs `data`, the names of data sets")
        return self

    def named(self, titles: Mapping[str, str]) -> PaperClaim:
        """Returns the claim with the models' titles in place of their names."""
        model, against = (one and titles.get(one, one) for one in (self.model, self.against))
        return self.model_copy(update={"model": model, "against": against})


class ComparedLine(BaseModel):
    """A model of a comparison: its title, the prompt that it is asked with, the names of its run
    directories by seed, and the name of the judge, if it is not the runs' own; where a comparison
    is one of numbers of examples, the method and that number."""

    title: str
    prompt: str
    runs: dict[int, str]
    judge: str = ""
    method: str = ""
    examples: int = 0


class Compared(BaseModel):
    """What a comparison is of, as `rarl compare` leaves it for the report beside its tables. The
    reference is the title of a line, and so are the models of claims; `by` are the columns whose
    groups are compared."""

    reference: str
    lines: list[ComparedLine]
    claims: list[PaperClaim] = []
    by: list[str] = Field(default_factory=list)

    def write(self, out: Path) -> None:
        """Writes it into the folder of a comparison."""
        write_text(out / COMPARED, self.model_dump_json(indent=2) + "\n")

    def read_lines(self, out: Path) -> list[ComparedModel]:
        """Returns the lines, as far as their runs were begun."""
        paths = [{seed: out / name for seed, name in one.runs.items()} for one in self.lines]
        return [
            line_of(one.title, runs, one.prompt, one.judge)
            for one, runs in zip(self.lines, paths, strict=True)
        ]

    def seconds(self, out: Path) -> dict[str, dict[int, float]]:
        """Returns the wall seconds of each line's training by seed, of the runs that are
        finished."""
        found: dict[str, dict[int, float]] = {}
        for line in self.lines:
            for seed, name in line.runs.items():
                summary = RunDir(out / name).read_summary()
                if summary is not None and summary["seconds"]["train"]:
                    found.setdefault(line.title, {})[seed] = summary["seconds"]["train"]
        return found


def read_compared(out: Path) -> Compared | None:
    """Returns what the comparison in a folder is of; None if `rarl compare` has not made it. Raises
    UserError for a file that cannot be read."""
    path = out / COMPARED
    if not path.is_file():
        return None
    try:
        return Compared.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path}: cannot be read; delete it, and repeat `rarl compare`") from None


@dataclass(frozen=True)
class TableLine:
    """One line of the tables. `is_usual` tells that a model is asked as its run asks it by itself.
    To pair with, `before` holds what the base replied in the same way in the same runs, and
    `with_image`, of a control, what the same model replied to the same prompt with the image."""

    name: str
    kind: Literal["floor", "base", "trained"]
    way: Way = field(default_factory=Way)
    is_usual: bool = True
    replies: Replies = field(default_factory=dict)
    before: Replies = field(default_factory=dict)
    with_image: Replies = field(default_factory=dict)

    @property
    def is_base(self) -> bool:
        """Whether nothing was trained for it."""
        return self.kind != "trained"

    @property
    def seeds(self) -> list[int]:
        """All seeds, ascending."""
        return sorted({seed for by_seed in self.replies.values() for seed in by_seed})


def models_of(
    lines: Sequence[ComparedModel], data_sets: Collection[str] | None = None
) -> list[TableLine]:
    """Returns the floors, then the bases, then what was trained, each in the order of the lines and
    as far as it was measured, on these data sets or on all. Lines with one base and one prompt
    share the base's replies. Floors are drawn from the training data of the first line that has
    any."""
    bases, trained = dict[str, TableLine](), dict[str, TableLine]()
    places: dict[str, int] = {}  # of the lines that trained models belong to
    floors = {name: TableLine(name, "floor") for name in FLOORS}
    drawn: dict[tuple[Path, tuple[QuestionKey, ...]], dict[str, list[Sample]]] = {}
    for line, seed in [(one, seed) for one in lines for seed in one.folders]:
        base, own = (
            {
                (data, way): samples
                for (data, way), samples in read_ways(line.folders[seed], one, line.judge).items()
                if is_shown(lines, line, way) and (data_sets is None or data in data_sets)
            }
            for one in ("base", "trained")
        )
        for (data, way), samples in base.items():
            name = base_name(lines, line, way)
            model = bases.setdefault(name, TableLine(name, "base", way, way == Way(line.prompt)))
            put(model.replies, data, seed, samples)
            if way.control:
                put(model.with_image, data, seed, base.get((data, Way(way.prompt))))
        for (data, way), samples in own.items():
            name = trained_name(line, way)
            places.setdefault(name, lines.index(line))
            model = trained.setdefault(
                name, TableLine(name, "trained", way, way == Way(line.prompt))
            )
            put(model.replies, data, seed, samples)
            put(model.before, data, seed, base.get((data, way)))
            if way.control:
                put(model.with_image, data, seed, own.get((data, Way(way.prompt))))
        for (data, way), samples in (base | own).items() if seed in line.train else ():
            key = (line.train[seed], tuple(questions_of(samples)))
            if way.is_plain and key not in drawn:
                drawn[key] = floors_of(line.train[seed], {data: samples}).get(data, {})
            for floor, answers in drawn.get(key, {}).items():
                put(floors[floor].replies, data, seed, answers)
    # what is asked as usual comes first: among the bases, and in each line of a trained model
    ordered = sorted(bases.values(), key=lambda one: not one.is_usual)
    ordered += sorted(trained.values(), key=lambda one: (places[one.name], not one.is_usual))
    return [one for one in (*floors.values(), *ordered) if one.replies]


def put(replies: Replies, data: str, seed: int, samples: list[Sample] | None) -> None:
    """Adds replies where there are some and no others yet."""
    if samples:
        replies.setdefault(data, {}).setdefault(seed, samples)


def is_shown(lines: Sequence[ComparedModel], line: ComparedModel, way: Way) -> bool:
    """Tells whether a way of asking the runs of a line is shown with it, and not with another line
    of the same runs: with the one that has its prompt, or else with the first."""
    same = [one for one in lines if one.folders == line.folders]
    own = [one for one in same if one.prompt == way.prompt and not way.options]
    return line is (own or same)[0]


def base_name(lines: Sequence[ComparedModel], line: ComparedModel, way: Way) -> str:
    """Returns "base", with the prompt if lines differ in theirs, or if it is another one than the
    line's, and with the model if lines differ in it."""
    words = way.words(None if len({one.prompt for one in lines}) > 1 else line.prompt)
    if len({one.base for one in lines}) > 1:
        words = [*words, line.base]
    return named("base", words)


def trained_name(line: ComparedModel, way: Way) -> str:
    """Returns the line's title, with what is asked otherwise in brackets."""
    return named(line.title, way.words(line.prompt))


def named(model: str, words: Sequence[str]) -> str:
    """Returns a model's name with what is asked otherwise in brackets."""
    return f"{model} ({', '.join(words)})" if words else model
