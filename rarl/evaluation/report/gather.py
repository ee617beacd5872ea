"""What a report is about, read from run directories: models, their replies by data set and seed,
metrics, notes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rarl.config import IMPORT_PATH, Config, load_config
from rarl.errors import UserError
from rarl.evaluation.prediction import Prediction, load_predictions
from rarl.training.log import read_metrics
from rarl.training.run_dir import RunDir

NAME_AND_SEED = re.compile(r"(.+)-(\d+)")
ASKED_OTHERWISE = re.compile(r"-(text|blank|shuffled|options|samples\d+)$|-judged-by-")
JUDGE_CARDS = ("judge-card.json", "card.json")

Replies = dict[str, dict[int, list[Prediction]]]  # data set → seed → replies, question by question


@dataclass(frozen=True)
class Run:
    """One run directory. `base` and `trained` are its replies by data set, as far as they were
    measured."""

    name: str
    seed: int
    path: Path
    config: Config
    base: dict[str, list[Prediction]]
    trained: dict[str, list[Prediction]]
    metrics: list[dict[str, Any]]
    summary: dict[str, Any] | None

    def data_path(self, key: str, source: str) -> Path:
        """Where the Parquet file or folder of a data set is, or was; `key` is `data.train` or
        `data.eval.NAME`."""
        made = self.path / "data" / f"{key}.parquet"
        return made if not source or IMPORT_PATH.match(source) else Path(source).expanduser()

    def source(self, data_set: str) -> str:
        """As the configuration names it; nothing for a data set that was measured later."""
        return self.config.data.eval.get(data_set, "")


@dataclass(frozen=True)
class Model:
    """One line of the comparison. `before` holds what the base replied in the same runs, to pair
    with; empty for a base itself."""

    name: str
    is_base: bool
    replies: Replies = field(default_factory=dict)
    before: Replies = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for by_seed in self.replies.values() for seed in by_seed})

    def accuracy(self) -> float:
        """Over all data sets and seeds."""
        everything = [
            p.correct for by_seed in self.replies.values() for one in by_seed.values() for p in one
        ]
        return sum(everything) / len(everything)


@dataclass(frozen=True)
class JudgeCard:
    fit: bool
    failures: list[str]


@dataclass(frozen=True)
class Report:
    """Everything that the page is made from, but data sets and pictures."""

    folder: Path
    is_comparison: bool
    runs: list[Run]
    models: list[Model]
    data_sets: list[str]
    notes: list[str]
    judge: JudgeCard | None

    @property
    def best(self) -> Model:
        """The trained model that is right most often; a base where nothing was trained."""
        trained = [model for model in self.models if not model.is_base]
        return max(trained or self.models, key=Model.accuracy)

    @property
    def example_seed(self) -> int:
        """The first seed that most models have."""
        seeds = [seed for model in self.models for seed in model.seeds]
        return min(set(seeds), key=lambda seed: (-seeds.count(seed), seed))


def gather(folder: Path) -> Report:
    """Raises UserError when `folder` is neither a run directory nor a folder of them, or holds no
    measurement."""
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; name a run directory, or a folder of run directories NAME-SEED"
        )
    is_comparison = not RunDir(folder).config.is_file()
    paths = sorted(p.parent for p in folder.glob("*/config.yaml")) if is_comparison else [folder]
    if not paths:
        raise UserError(
            f"{folder}: neither a run directory (there is no config.yaml in it) nor a folder of run directories "
            "NAME-SEED; make one with `rarl train CONFIG`"
        )
    found = [read_run(path, is_comparison) for path in paths]
    runs = [run for run in found if run.base or run.trained]
    if not runs:
        raise UserError(
            f"{folder}: no measurement in evaluation/ yet; finish the run (`rarl train` continues it)"
        )
    runs.sort(key=lambda run: (run.name, run.seed))
    return Report(
        folder=folder,
        is_comparison=is_comparison,
        runs=runs,
        models=models_of(runs, is_comparison),
        data_sets=list(dict.fromkeys(name for run in runs for name in (*run.base, *run.trained))),
        notes=notes_on(found),
        judge=read_judge_card(folder),
    )


def read_run(path: Path, is_comparison: bool) -> Run:
    run_dir = RunDir(path)
    config = load_config(run_dir.config)
    named = NAME_AND_SEED.fullmatch(path.name) if is_comparison else None
    names = [*config.data.eval, *further_data_sets(path / "evaluation", list(config.data.eval))]
    return Run(
        name=named[1] if named else path.name,
        seed=int(named[2]) if named else config.seed,
        path=path,
        config=config,
        base=read_replies(path / "evaluation", "base", names),
        trained=read_replies(path / "evaluation", "trained", names),
        metrics=read_metrics(run_dir.metrics),
        summary=run_dir.read_summary(),
    )


def further_data_sets(evaluation: Path, known: list[str]) -> list[str]:
    """Those that were measured without being in the configuration. The same data set asked in
    another way has a file too, its name with a suffix; that is not one."""
    found: list[str] = []
    stems = {
        file.stem.partition("-")[2]
        for label in ("base", "trained")
        for file in evaluation.glob(f"{label}-*.parquet")
    }
    for name in sorted(stems):
        is_another = any(
            name == other or name.startswith(f"{other}-") for other in (*known, *found)
        )
        if not is_another and not ASKED_OTHERWISE.search(name):
            found.append(name)
    return found


def read_replies(evaluation: Path, label: str, names: list[str]) -> dict[str, list[Prediction]]:
    """By data set, as far as there are any; of several samples, the first."""
    replies = {}
    for name in names:
        file = evaluation / f"{label}-{name}.parquet"
        if file.is_file() and (predictions := [p for p in load_predictions(file) if not p.sample]):
            replies[name] = predictions
    return replies


def models_of(runs: list[Run], is_comparison: bool) -> list[Model]:
    """Bases first, then what was trained, by name."""
    labels = base_labels(runs)
    models: dict[str, Model] = {}
    for label, run in sorted(zip(labels, runs, strict=True), key=lambda pair: pair[0]):
        base = models.setdefault(label, Model(label, is_base=True))
        for name, replies in run.base.items():
            base.replies.setdefault(name, {}).setdefault(run.seed, replies)
    for run in runs:
        if run.trained:
            name = run.name if is_comparison else "trained"
            model = models.setdefault(f"trained {name}", Model(name, is_base=False))
            for data_set, replies in run.trained.items():
                model.replies.setdefault(data_set, {})[run.seed] = replies
                model.before.setdefault(data_set, {})[run.seed] = run.base.get(data_set, [])
    return [model for model in models.values() if model.replies]


def base_labels(runs: list[Run]) -> list[str]:
    """What each run's base is called. Runs that ask the same model in the same way share one."""
    asked = [(run.config.prompts.eval, run.config.model.path) for run in runs]
    prompts, paths = ({one[i] for one in asked} for i in (0, 1))
    labels = []
    for prompt, path in asked:
        parts = [prompt] * (len(prompts) > 1) + [path] * (len(paths) > 1)
        labels.append(f"base ({', '.join(parts)})" if parts else "base")
    return labels


def notes_on(found: list[Run]) -> list[str]:
    """What a reader should know that the tables do not show."""
    notes = []
    for run in found:
        missing = [name for name in run.config.data.eval if name not in run.trained]
        if not run.trained:
            notes.append(
                f"{run.path.name}: not trained and measured to the end, so only its base model is shown."
            )
        elif missing:
            notes.append(f"{run.path.name}: not measured on {', '.join(missing)} after training.")
    return notes


def read_judge_card(folder: Path) -> JudgeCard | None:
    """Raises UserError for one that cannot be read: a broken card must not pass for a fit judge."""
    for name in JUDGE_CARDS:
        path = folder / name
        if path.is_file():
            try:
                card = json.loads(path.read_text(encoding="utf-8"))
                return JudgeCard(
                    fit=bool(card["fit"]), failures=[str(line) for line in card["failures"]]
                )
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{path}: not a judge card (a JSON object with 'fit' and 'failures')"
                ) from None
    return None
