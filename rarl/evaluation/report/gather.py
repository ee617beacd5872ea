"""What a report is about, read from run directories: models, their replies by data set and seed,
metrics, notes, and what the data sets hold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rarl.config import IMPORT_PATH, Config, load_config
from rarl.data.parquet import ParquetRows
from rarl.errors import UserError
from rarl.evaluation.measurements import (
    finished_measurements,
    own_measurement,
    read_finished,
    require_readable,
)
from rarl.evaluation.results import first_samples, mean_of
from rarl.samples import Sample
from rarl.schema import Example
from rarl.training.log import read_metrics
from rarl.training.run_dir import RunDir

NAME_AND_SEED = re.compile(r"(.+)-(\d+)")
JUDGE_CARDS = ("judge-card.json", "card.json")
MOST_COMMON = 6  # values of a field that a data card lists
SKIPPED_SHOWN = 20
# The fields of Example that have a place of their own in the report; others are shown by name.
PLACED = (
    *("id", "image", "image_id", "question", "answer", "answer_type", "options", "rationale"),
    *("dataset", "split"),
)

Replies = dict[str, dict[int, list[Sample]]]  # data set → seed → replies, question by question
Shares = list[tuple[str, int, float]]  # what, how many rows, of 100


@dataclass(frozen=True)
class Run:
    """One run directory. `base` and `trained` are its replies by data set, as far as they were
    measured."""

    name: str
    seed: int
    path: Path
    config: Config
    base: dict[str, list[Sample]]
    trained: dict[str, list[Sample]]
    metrics: list[dict[str, Any]]
    summary: dict[str, Any] | None

    def data_path(self, key: str, source: str) -> Path:
        """Returns where the Parquet file or folder of a data set is, or was; `key` is `data.train`
        or `data.eval.NAME`."""
        made = self.path / "data" / f"{key}.parquet"
        return made if not source or IMPORT_PATH.match(source) else Path(source).expanduser()

    def source(self, data_set: str) -> str:
        """Returns what the configuration names; nothing for a data set that was measured later."""
        return self.config.data.eval.get(data_set, "")


@dataclass(frozen=True)
class Model:
    """One line of the comparison. `before` holds what the base replied in the same runs, to pair
    with; it is empty for a base itself."""

    name: str
    is_base: bool
    replies: Replies = field(default_factory=dict)
    before: Replies = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        """All seeds, ascending."""
        return sorted({seed for by_seed in self.replies.values() for seed in by_seed})

    def accuracy(self) -> float:
        """Returns the accuracy over all data sets and seeds."""
        everything = [own for by_seed in self.replies.values() for own in by_seed.values()]
        return mean_of(one.rewards["correct"] or 0.0 for own in everything for one in own)


class JudgeCard(BaseModel):
    """What the examination of the judge came to."""

    fit: bool
    failures: list[str]


@dataclass(frozen=True)
class Report:
    """Everything that the page is made from, but pictures."""

    folder: Path
    is_comparison: bool
    runs: list[Run]
    models: list[Model]
    data_sets: list[str]
    notes: list[str]
    judge: JudgeCard | None

    @property
    def best(self) -> Model:
        """The trained model that is right most often; a base if nothing was trained."""
        trained = [model for model in self.models if not model.is_base]
        return max(trained or self.models, key=Model.accuracy)

    @property
    def example_seed(self) -> int:
        """The first seed that most models have."""
        seeds = [seed for model in self.models for seed in model.seeds]
        return min(set(seeds), key=lambda seed: (-seeds.count(seed), seed))


def gather(folder: Path) -> Report:
    """Reads a run directory, or a folder of them. Raises UserError if `folder` is neither, and if
    there is no measurement in it."""
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        wanted = "name a run directory, or a folder of run directories NAME-SEED"
        raise UserError(f"{folder}: no such folder; {wanted}")
    is_comparison = not RunDir(folder).config.is_file()
    paths = sorted(p.parent for p in folder.glob("*/config.yaml")) if is_comparison else [folder]
    if not paths:
        raise UserError(
            f"{folder}: neither a run directory (there is no config.yaml in it) nor a folder of "
            "run directories NAME-SEED; make one with `rarl train CONFIG`"
        )
    found = [read_run(path, is_comparison) for path in paths]
    runs = sorted(
        (run for run in found if run.base or run.trained), key=lambda run: (run.name, run.seed)
    )
    if not runs:
        advice = "finish the run (`rarl train` continues it)"
        raise UserError(f"{folder}: no measurement in evaluation/ yet; {advice}")
    data_sets = list(dict.fromkeys(name for run in runs for name in (*run.base, *run.trained)))
    models, judge = models_of(runs, is_comparison), read_judge_card(folder)
    return Report(folder, is_comparison, runs, models, data_sets, notes_on(found), judge)


def read_run(path: Path, is_comparison: bool) -> Run:
    """Returns a run with what it measured by itself, and what was measured later in the same way:
    with its own prompt and judge, greedily, without a control."""
    require_readable(path)
    run_dir, evaluation = RunDir(path), path / "evaluation"
    config = load_config(run_dir.config)
    named = NAME_AND_SEED.fullmatch(path.name) if is_comparison else None
    measured = {key.data for key in finished_measurements(evaluation)}
    names = list(dict.fromkeys([*config.data.eval, *sorted(measured)]))
    replies: dict[str, dict[str, list[Sample]]] = {"base": {}, "trained": {}}
    for label, by_data in replies.items():
        for name in names:
            samples = read_finished(evaluation, own_measurement(config, label, name))
            if samples:
                by_data[name] = first_samples(samples)
    return Run(
        name=named[1] if named else path.name,
        seed=int(named[2]) if named else config.seed,
        path=path,
        config=config,
        metrics=read_metrics(run_dir.metrics),
        summary=run_dir.read_summary(),
        **replies,
    )


def models_of(runs: list[Run], is_comparison: bool) -> list[Model]:
    """Returns the bases first, then what was trained, by name. Runs that ask the same model in the
    same way share a base."""
    prompts = {run.config.prompts.eval for run in runs}
    paths = {run.config.model.path for run in runs}
    models: dict[tuple[bool, str], Model] = {}
    for run in runs:
        parts = [run.config.prompts.eval] * (len(prompts) > 1)
        parts += [run.config.model.path] * (len(paths) > 1)
        label = f"base ({', '.join(parts)})" if parts else "base"
        base = models.setdefault((False, label), Model(label, is_base=True))
        for name, replies in run.base.items():
            base.replies.setdefault(name, {}).setdefault(run.seed, replies)
        if run.trained:
            title = run.name if is_comparison else "trained"
            model = models.setdefault((True, title), Model(title, is_base=False))
            for name, replies in run.trained.items():
                model.replies.setdefault(name, {})[run.seed] = replies
                model.before.setdefault(name, {})[run.seed] = run.base.get(name, [])
    return [model for _, model in sorted(models.items(), key=lambda m: m[0]) if model.replies]


def notes_on(found: list[Run]) -> list[str]:
    """Returns what a reader should know that the tables do not show."""
    notes = []
    for run in found:
        missing = [name for name in run.config.data.eval if name not in run.trained]
        if not run.trained:
            what = "not trained and measured to the end, so only its base model is shown"
            notes.append(f"{run.path.name}: {what}.")
        elif missing:
            notes.append(f"{run.path.name}: not measured on {', '.join(missing)} after training.")
        leaks = RunDir(run.path).read_leaks().values()
        notes += [f"{leak['told']}." for leak in leaks if leak["warns"]]
    return list(dict.fromkeys(notes))


def read_judge_card(folder: Path) -> JudgeCard | None:
    """Raises UserError for one that cannot be read: a broken card must not pass for a fit judge."""
    for path in (folder / name for name in JUDGE_CARDS):
        if path.is_file():
            try:
                return JudgeCard.model_validate_json(path.read_text(encoding="utf-8"))
            except ValueError:
                raise UserError(
                    f"{path}: not a judge card (a JSON object with 'fit' and 'failures')"
                ) from None
    return None


@dataclass(frozen=True)
class DataCard:
    """What a data set holds, and what was left out of it. `fault` says why nothing is known but the
    name, for instance because the file has moved since. `shares` are lists by their title."""

    name: str
    role: str
    source: str
    path: str
    measured: int | None
    skipped: list[str]
    skipped_rows: int
    fault: str = ""
    questions: int = 0
    images: int = 0
    shares: dict[str, Shares] = field(default_factory=dict)


def data_cards(report: Report) -> list[DataCard]:
    """Returns training data, then measured data, each source once, from the first run that names
    it."""
    cards: dict[tuple[str, str, str], DataCard] = {}
    for run in report.runs:
        measured = dict.fromkeys([*run.config.data.eval, *run.base, *run.trained])
        train = run.config.data.train
        sources = [("trained on", "train", train)] if train is not None else []
        sources += [("measured", name, run.source(name)) for name in measured]
        for role, name, source in sources:
            if (role, name, source) not in cards:
                cards[role, name, source] = make_card(run, role, name, source)
    return sorted(cards.values(), key=lambda card: card.role == "measured")


def make_card(run: Run, role: str, name: str, source: str) -> DataCard:
    """Returns the card of one data set of a run."""
    is_training = role == "trained on"
    path = run.data_path("data.train" if is_training else f"data.eval.{name}", source)
    listed = run.path / f"skipped-{name}.txt"
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    skipped = ((run.summary or {}).get("skipped_rows") or {}).get(name, len(lines))
    measured = None if is_training else len(run.base.get(name) or run.trained.get(name) or [])
    known = (name, role, source, str(path), measured, lines[:SKIPPED_SHOWN], skipped)
    try:
        rows = ParquetRows(path)
    except UserError as error:
        return DataCard(*known, fault=str(error))
    types, answers = rows.column("answer_type"), rows.column("answer")
    found = {"Answer types": shares(types)}
    for kind in sorted(set(types)):
        pairs = zip(answers, types, strict=True)
        own = [answer.strip().lower() for answer, its in pairs if its == kind]
        found[f"Answers, {kind}"] = shares(own)
    titles = {"modality": "Modalities", "organ": "Organs"}
    for name in (one.name for one in fields(Example) if one.name not in PLACED):
        title = titles.get(name, name.replace("_", " ").capitalize())
        found[title] = shares(rows.column(name))
    images = len(set(rows.column("image_id")))
    return DataCard(*known, questions=len(rows), images=images, shares=found)


def shares(values: Sequence[Any]) -> Shares:
    """Returns the most common values and the rest together, with their share in per cent; nothing
    if no row has one."""
    known = Counter("not given" if value in (None, "") else str(value) for value in values)
    if set(known) <= {"not given"}:
        return []
    common = sorted(known.items(), key=lambda item: (-item[1], item[0]))
    listed = common[:MOST_COMMON] if len(common) > MOST_COMMON + 1 else common
    rest = len(values) - sum(count for _, count in listed)
    if rest:
        listed = [*listed, (f"{len(common) - len(listed)} others", rest)]
    return [(what, count, 100.0 * count / len(values)) for what, count in listed]
