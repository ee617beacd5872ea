"""What a report is about, read from run directories: models, their replies by data set and seed,
metrics, notes, and what the data sets hold."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from rarl.config import IMPORT_PATH, Config, load_config
from rarl.data.parquet import ParquetRows
from rarl.errors import UserError
from rarl.evaluation.claims import CheckedClaim, check_claims
from rarl.evaluation.group_table import known_columns
from rarl.evaluation.lines import TableLine, line_of, models_of, read_compared
from rarl.evaluation.measured_data import known_data
from rarl.evaluation.measurements import (
    count_questions,
    finished_measurements,
    own_measurement,
    require_readable,
)
from rarl.evaluation.probe import ADVICE, Probe
from rarl.evaluation.results import mean_of
from rarl.evaluation.ways import training_data
from rarl.schema import Example
from rarl.training.log import read_metrics
from rarl.training.run_dir import RunDir

NAME_AND_SEED = re.compile(r"(.+)-(\d+)")
JUDGE_CARDS = ("judge-card.json", "card.json")
MOST_COMMON = 6  # values of a field that a data card lists
SKIPPED_SHOWN = 20
# The fields of Example that have a place of their own in the report; others are shown by name.
PLACED = (
    *("id", "images", "image_id", "question", "answer", "answer_type", "options", "rationale"),
    *(
        "facts",
        "other_facts",
        "boxes",
        "image_labels",
        "dataset",
        "split",
        # what may tell who the patient is
        "patient",
        "study",
        "extra",
    ),
)

Shares = list[tuple[str, int, float]]  # what, how many rows, of 100


@dataclass(frozen=True)
class Run:
    """One run directory. `measured` maps each data set to the questions that were put to any of its
    models; `finished` are those that the trained model was measured on as its run does by
    itself."""

    name: str
    seed: int
    path: Path
    config: Config
    measured: dict[str, int]
    finished: set[str]
    metrics: list[dict[str, Any]]
    summary: dict[str, Any] | None

    @property
    def train_path(self) -> Path | None:
        """Where its training data are, or were; None if it is only measured."""
        return training_data(self.config, self.path)

    def eval_path(self, data_set: str) -> Path:
        """Returns where a measured data set is, or was, whether the configuration names it or a
        later measurement did."""
        made = self.path / "data" / f"data.eval.{data_set}.parquet"
        if made.exists():
            return made
        source = known_data(self.path / "evaluation").get(data_set) or self.source(data_set)
        return made if not source or IMPORT_PATH.match(source) else Path(source).expanduser()

    def source(self, data_set: str) -> str:
        """Returns what the configuration names; nothing for a data set that was measured later."""
        return self.config.data.eval.get(data_set, "")


class JudgeVerdict(BaseModel):
    """What the examination of the judge came to."""

    fit: bool
    failures: list[str]


@dataclass(frozen=True)
class Probed:
    """What `rarl probe` found before the run of this name was trained, and its advice in words."""

    run: str
    found: Probe
    advice: str


@dataclass(frozen=True)
class Report:
    """Everything that the page is made from, but pictures."""

    folder: Path
    is_comparison: bool
    runs: list[Run]
    lines: list[TableLine]
    data_sets: list[str]
    notes: list[str]
    judge: JudgeVerdict | None
    reference: str = ""
    # method and number of examples, by the title of a line, where a comparison is one of numbers
    sizes: dict[str, tuple[str, int]] = field(default_factory=dict)
    by: list[str] = field(default_factory=list)  # columns whose groups are compared
    probes: list[Probed] = field(default_factory=list)
    claims: list[CheckedClaim] = field(default_factory=list)

    @property
    def models(self) -> list[TableLine]:
        """The bases and what was trained, asked with any prompt, but with their images and
        greedily."""
        return [one for one in self.lines if one.kind != "floor" and one.way.is_plain]

    @property
    def otherwise(self) -> list[TableLine]:
        """What was measured with controls, several samples, or by the options' likelihood."""
        return [one for one in self.lines if not one.way.is_plain]

    @property
    def best(self) -> TableLine:
        """The comparison's reference; else the trained model that is right most often; a base if
        nothing was trained."""
        named = [one for one in self.models if one.name == self.reference]
        usual = [one for one in self.models if one.is_usual] or self.models
        trained = [one for one in usual if not one.is_base]
        return max(named or trained or usual, key=accuracy_of)

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
    compared = read_compared(folder) if is_comparison else None
    paths = sorted(p.parent for p in folder.glob("*/config.yaml")) if is_comparison else [folder]
    titles: dict[str, str] = {}
    if compared is not None:
        # a run that is asked in several ways is called as the first line calls it
        for line in reversed(compared.lines):
            titles |= dict.fromkeys(line.runs.values(), line.title)
        paths = [path for path in paths if path.name in titles]
    if not paths:
        raise UserError(
            f"{folder}: neither a run directory (there is no config.yaml in it) nor a folder of "
            "run directories NAME-SEED; make one with `rarl train CONFIG`"
        )
    found = [read_run(path, is_comparison, titles.get(path.name)) for path in paths]
    runs = sorted((run for run in found if run.measured), key=lambda run: (run.name, run.seed))
    if not runs:
        advice = "finish the run (`rarl train` continues it)"
        raise UserError(f"{folder}: no measurement in evaluation/ yet; {advice}")
    if compared is None:
        by_name: dict[str, dict[int, Path]] = {}
        for run in runs:
            name = run.name if is_comparison else "trained"
            by_name.setdefault(name, {})[run.seed] = run.path
        lines = models_of([line_of(name, own) for name, own in by_name.items()])
    else:
        lines = models_of(compared.read_lines(folder))
    probes = {run.path: probe for run in found if (probe := read_probe(run.path))}
    return Report(
        folder=folder,
        is_comparison=is_comparison,
        runs=runs,
        lines=lines,
        data_sets=list(dict.fromkeys(name for run in runs for name in run.measured)),
        notes=notes_on(found, lines, probes),
        judge=read_judge_card(folder),
        reference=compared.reference if compared else "",
        sizes={
            line.title: (line.method, line.examples)
            for line in (compared.lines if compared else ())
            if line.examples
        },
        by=list(dict.fromkeys([*(compared.by if compared else ()), *columns_compared(runs)])),
        probes=[probes[run.path] for run in runs if run.path in probes],
        claims=check_claims(compared.claims, lines, compared.seconds(folder)) if compared else [],
    )


def columns_compared(runs: Sequence[Run]) -> Iterator[str]:
    """Yields the columns whose groups a configuration or a later measurement compares."""
    for run in runs:
        yield from run.config.evaluation.by
        yield from known_columns(run.path / "evaluation")


def read_run(path: Path, is_comparison: bool, title: str | None) -> Run:
    """Returns a run with what was measured of it, by itself or later; its name is that of its
    folder, if it has no title."""
    require_readable(path)
    run_dir, evaluation = RunDir(path), path / "evaluation"
    config = load_config(run_dir.config)
    named = NAME_AND_SEED.fullmatch(path.name) if is_comparison else None
    keys = finished_measurements(evaluation)
    counts = {key.data: count_questions(evaluation, key) for key in keys}
    names = dict.fromkeys([*config.data.eval, *sorted(counts)])
    return Run(
        name=title or (named[1] if named else path.name),
        seed=int(named[2]) if named else config.seed,
        path=path,
        config=config,
        measured={name: counts[name] for name in names if counts.get(name)},
        finished={name for name in names if own_measurement(config, "trained", name) in keys},
        metrics=read_metrics(run_dir.metrics),
        summary=run_dir.read_summary(),
    )


def accuracy_of(model: TableLine) -> float:
    """Returns the accuracy over all data sets and seeds."""
    everything = [own for by_seed in model.replies.values() for own in by_seed.values()]
    return mean_of(one.rewards["correct"] or 0.0 for own in everything for one in own)


def notes_on(found: list[Run], models: list[TableLine], probes: dict[Path, Probed]) -> list[str]:
    """Returns what a reader should know that the tables do not show."""
    notes = []
    for run in found:
        missing = [name for name in run.config.data.eval if name not in run.finished]
        if not run.finished:
            what = "not trained and measured to the end, so only its base model is shown"
            notes.append(f"{run.path.name}: {what}.")
        elif missing:
            notes.append(f"{run.path.name}: not measured on {', '.join(missing)} after training.")
        leaks = RunDir(run.path).read_leaks().values()
        notes += [f"{leak['told']}." for leak in leaks if leak["warns"]]
        if run.path in probes:
            told = f"before training, the probe's advice was: {probes[run.path].advice}."
            notes.append(f"{run.path.name}: {told}")
    if not any(one.kind == "floor" for one in models):
        notes.append("The training data are not to be found: what needs no image is not shown.")
    bases = [one for one in models if one.kind == "base" and one.way.is_plain]
    if len({one.way.prompt for one in bases}) == 1:
        notes.append(
            f"The base was asked with one prompt, {bases[0].way.prompt}: another may suit it "
            "better; `rarl eval RUN --prompt …` measures others."
        )
    return list(dict.fromkeys(notes))


def read_probe(run: Path) -> Probed | None:
    """Returns what `rarl probe` found; None where it was not asked, or cannot be read."""
    try:
        text = (RunDir(run).probe / "probe.json").read_text(encoding="utf-8")
        held, found = json.loads(text), TypeAdapter(Probe).validate_json(text)
        return Probed(run.name, found, f"{ADVICE[held['advice']]}; {held['reason']}")
    except (OSError, ValueError, KeyError):
        return None


def read_judge_card(folder: Path) -> JudgeVerdict | None:
    """Raises UserError for one that cannot be read: a broken card must not pass for a fit judge."""
    for path in (folder / name for name in JUDGE_CARDS):
        if path.is_file():
            try:
                return JudgeVerdict.model_validate_json(path.read_text(encoding="utf-8"))
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
        measured = dict.fromkeys([*run.config.data.eval, *run.measured])
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
    path = (run.train_path if is_training else None) or run.eval_path(name)
    listed = run.path / f"skipped-{name}.txt"
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    skipped = ((run.summary or {}).get("skipped_rows") or {}).get(name, len(lines))
    measured = None if is_training else run.measured.get(name, 0)
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
