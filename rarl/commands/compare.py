"""`rarl compare`: trains what is missing, measures all models on all data, and makes one table.

A comparison is a YAML file: models (recipes with overrides), seeds, further data sets. Each model
and seed has a run directory `OUT/NAME-SEED`; what is finished is not repeated, so the same command
goes on where it stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from rarl.commands.resolve import find_data, require_one_path, require_other_judge
from rarl.config import IMPORT_PATH, Config, JudgeConfig, Section, load_config
from rarl.errors import UserError
from rarl.evaluation import measurements
from rarl.evaluation.claims import check_claims
from rarl.evaluation.groups import require_columns
from rarl.evaluation.lines import BASE, Compared, ComparedLine, PaperClaim, models_of
from rarl.evaluation.results import compare_models
from rarl.evaluation.tables import write_tables
from rarl.judge.client import check_judge
from rarl.keys import (
    anchored_override,
    apply_override,
    listed_numbers,
    read_yaml,
    validated,
)
from rarl.paths import anchored
from rarl.system.processes import run_to_its_end
from rarl.training.run_dir import RunDir, changes_of, refused_of

# The keys of a run that a comparison sets, and those of its own that they come from.
SET_BY = {"run_dir": "out", "seed": "seeds"}
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]


class ModelEntry(Section):
    """One line of the table: a recipe that is trained, or another model's adapter that is asked
    otherwise."""

    title: str  # in the tables
    recipe: str | None = None  # relative to the comparison's file
    measured_as: str | None = None  # another model of the comparison, to be asked with `prompt`
    prompt: str | None = None  # the family that `measured_as` is asked with
    overrides: list[str] = Field(default_factory=list)  # key=value, for its training

    @model_validator(mode="after")
    def one_source(self) -> ModelEntry:
        """Raises ValueError unless it is one or the other."""
        fault = None
        if (self.recipe is None) == (self.measured_as is None):
            fault = "either `recipe` or `measured_as` is needed; the base comes by itself"
        elif (self.measured_as is None) != (self.prompt is None):
            fault = "`prompt` is for `measured_as`, which needs it; recipes have prompts.eval"
        elif self.measured_as is not None and self.overrides:
            fault = "`overrides` are for a recipe: `measured_as` asks an adapter that is trained"
        if fault:
            raise ValueError(fault)
        return self


class SizedEntry(ModelEntry):
    """A model that learns from so many examples: one of the lines that `Comparison.examples` makes
    of each model."""

    method: str  # the title of the model in the file
    examples: int


class Comparison(Section):
    """A comparison's file."""

    out: str  # the folder of tables, report and runs
    # each model is trained once with each
    seeds: Annotated[list[int], Field(min_length=1)] = Field(default_factory=lambda: [0, 1, 2])
    models: Annotated[dict[Name, ModelEntry], Field(min_length=1)]  # name → what it is
    reference: str  # the model that the others are set against
    data: dict[str, str] = Field(default_factory=dict)  # name → further data sets, to measure on
    # how to measure there: rollout.max_model_length=512
    data_overrides: list[str] = Field(default_factory=list)
    overrides: list[str] = Field(default_factory=list)  # for every training
    # who judges all replies: another judge than the one that gives any rewards
    judged_by: JudgeConfig | None = None
    # what a paper says, to be set beside what is measured
    claims: list[PaperClaim] = Field(default_factory=list)
    # each model learns from each of these numbers of examples; the reference is of the largest
    examples: list[Annotated[int, Field(gt=0)]] = Field(default_factory=list)

    @model_validator(mode="after")
    def names_exist(self) -> Comparison:
        """Raises ValueError for a model that is named and not there, and for a title that two
        models have, since the tables tell them apart by it."""
        titles = [entry.title for entry in self.models.values()]
        for name, entry in self.models.items():
            other = self.models.get(entry.measured_as or "")
            if entry.measured_as is not None and (other is None or other.recipe is None):
                raise ValueError(
                    f"models.{name}.measured_as: '{entry.measured_as}' is not a model with a recipe"
                )
            if titles.count(entry.title) > 1:
                raise ValueError(f"models.{name}.title: another model is called '{entry.title}'")
        if self.reference not in self.models:
            raise ValueError(f"reference: '{self.reference}' is none of {', '.join(self.models)}")
        if self.claims and self.examples:
            raise ValueError("claims: are not for a comparison of numbers of examples")
        for place, claim in enumerate(self.claims):
            for one in (claim.model, claim.against):
                if one not in (None, BASE, *self.models):
                    known = ", ".join((BASE, *self.models))
                    raise ValueError(f"claims.{place}: '{one}' is none of {known}")
        return self


def by_examples(comparison: Comparison) -> Comparison:
    """Returns the comparison with a model for every model and number of examples, if it names any
    numbers."""
    if not comparison.examples:
        return comparison
    models: dict[str, ModelEntry] = {}
    for (name, entry), count in product(comparison.models.items(), sorted(comparison.examples)):
        drawn = [f"data.select.examples={count}"] if entry.recipe else []
        asks = f"{entry.measured_as}-{count}" if entry.measured_as else None
        own = {"measured_as": asks, "overrides": [*entry.overrides, *drawn]}
        sized = {"title": f"{entry.title}, {count} examples", "method": entry.title}
        models[f"{name}-{count}"] = SizedEntry(**(entry.model_dump() | own | sized), examples=count)
    reference = f"{comparison.reference}-{max(comparison.examples)}"
    return comparison.model_copy(update={"models": models, "reference": reference})


@dataclass(frozen=True)
class Task:
    """One process to run: the arguments of `rarl`, and the files that tell that it is done, unless
    they are of fewer steps or data sets than are asked for now. `prepare` is called before."""

    title: str
    arguments: list[str]
    makes: list[Path]
    outgrown: bool = False
    prepare: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class FoundComparison:
    """A comparison with every file found. `where` is the folder of its YAML file; `configs` are
    those that were read so far, by model and seed."""

    comparison: Comparison
    where: Path
    out: Path
    source: Path
    overrides: list[str]
    configs: dict[tuple[str, int], Config] = field(default_factory=dict)

    def trained_as(self, name: str) -> str:
        """Returns the model whose adapter is asked."""
        return self.comparison.models[name].measured_as or name

    def folder(self, name: str, seed: int) -> Path:
        """Returns the run directory."""
        return self.out / f"{self.trained_as(name)}-{seed}"

    def training(self, name: str, seed: int) -> list[str]:
        """Returns what `rarl train` is given: the recipe, the model's own overrides, those of the
        comparison and of the command line, and the run directory and seed."""
        entry = self.comparison.models[self.trained_as(name)]
        fixed = [f"run_dir={self.folder(name, seed)}", f"seed={seed}"]
        listed = self.overrides_of([*entry.overrides, *self.comparison.overrides])
        overrides = [*listed, *self.overrides, *fixed]
        return [str(self.where / str(entry.recipe)), *overrides]

    def overrides_of(self, listed: Sequence[str]) -> list[str]:
        """Returns overrides of the comparison's file, whose paths are relative to it."""
        return [anchored_override(one, self.where) for one in listed]

    def config(self, name: str, seed: int) -> Config:
        """Returns what the model is trained with."""
        if (name, seed) not in self.configs:
            recipe, *overrides = self.training(name, seed)
            self.configs[name, seed] = load_config(recipe, overrides)
        return self.configs[name, seed]

    def data_sets(self) -> dict[str, str]:
        """Returns the paths by name: those of the recipes, and further ones."""
        return {name: path for _, name, path in self.measured()}

    @property
    def judge(self) -> JudgeConfig | None:
        """The judge of all measurements; None: each run's own, if it has one."""
        judged_by = self.comparison.judged_by
        return judged_by and judged_by.model_copy(update={"evaluate": True})

    def groups(self) -> list[str]:
        """Returns the columns whose groups are compared, those of all recipes and of the further
        data sets."""
        further, found = self.overrides_of(self.comparison.data_overrides), dict[str, None]()
        for name in self.comparison.models:
            recipe, *overrides = self.training(name, self.comparison.seeds[0])
            for more in ([], further):
                config = load_config(recipe, [*overrides, *more])
                found |= dict.fromkeys(config.evaluation.by)
        return list(found)

    def key(self, name: str, data: str) -> measurements.Measurement:
        """Returns the key of a model's measurement."""
        config = self.config(name, self.comparison.seeds[0])
        key = measurements.own_measurement(config, "trained", data)
        if self.judge is not None:
            key = replace(key, judge=measurements.judge_name(self.judge, config.judge))
        return replace(key, prompt=self.comparison.models[name].prompt or key.prompt)

    def tasks(self) -> list[Task]:
        """Returns everything, in order: each model's training and measurements, seed by seed."""
        pairs = product(self.comparison.models, self.comparison.seeds)
        return [task for name, seed in pairs for task in self.tasks_of(name, seed)]

    def tasks_of(self, name: str, seed: int) -> list[Task]:
        """Returns those of one run."""
        entry, folder = self.comparison.models[name], self.folder(name, seed)
        label = f"{entry.title}, seed {seed}"
        tasks = []
        if entry.recipe:
            arguments = ["train", *self.training(name, seed)]
            outgrown = bool(changes_of(RunDir(folder), self.config(name, seed)))
            makes = [folder / "summary.json"]
            tasks.append(Task(f"{label}: training", arguments, makes, outgrown))
        # A training measures its own data sets, but not by the comparison's judge.
        measured = entry.recipe and self.judge is None
        own = {} if measured else self.config(name, seed).data.eval
        judging = []
        if self.judge is not None:
            judging = [f"judge={json.dumps(self.judge.model_dump(exclude_none=True))}"]
        asked = ["--prompt", entry.prompt] if entry.prompt else []
        further = [f"data.eval={json.dumps(self.comparison.data)}"]
        further += self.overrides_of(self.comparison.data_overrides)
        for data, overrides in ((own, []), (self.comparison.data, further)):
            if data:
                keys = [self.key(name, one) for one in data]
                makes = [measurements.marker_of(folder / "evaluation", key) for key in keys]
                arguments = ["eval", str(folder), *overrides, *judging, *asked]
                tasks.append(Task(f"{label}: measuring on {', '.join(data)}", arguments, makes))
        return tasks

    def check(self) -> None:
        """Raises UserError for what would only be noticed after hours: a recipe that is wrong, data
        sets that are missing, a judge that cannot be, a run directory of another configuration."""
        if self.judge is not None:
            check_judge(self.judge)
        if absent := self.absent_data():
            listed = ", ".join(f"{key}={path}" for key, path in absent.items())
            what = "no such files or folders" if len(absent) > 1 else "no such file or folder"
            raise UserError(f"{listed}: {what}; make a data set with `rarl prepare`")
        require_one_path(self.measured())
        for key, path in self.data_named().items():
            find_data(key, path)
        paths = {f"data.eval.{name}": path for name, path in self.data_sets().items()}
        if not any(map(IMPORT_PATH.match, paths.values())):
            require_columns(self.groups(), paths)
        for name, entry in self.comparison.models.items():
            for seed in self.comparison.seeds if entry.recipe else ():
                run_dir = RunDir(self.folder(name, seed))
                config = self.config(name, seed)
                if self.judge is not None:
                    require_other_judge(config, self.judge)
                if refused := refused_of(changes_of(run_dir, config), run_dir):
                    held = f"holds a run of another configuration ({refused[0]})"
                    raise UserError(f"{run_dir.path}: {held}; delete it, or set another `out`")
                measurements.require_readable(run_dir.path)

    def measured(self) -> list[tuple[str, str, str]]:
        """Returns key, name and path of every data set that a model is measured on."""
        named = [
            (f"{model}: data.eval.{name}", name, path)
            for model in self.comparison.models
            for name, path in self.config(model, self.comparison.seeds[0]).data.eval.items()
        ]
        return named + [(f"data.{one}", one, path) for one, path in self.comparison.data.items()]

    def data_named(self) -> dict[str, str]:
        """Returns the paths of all data sets by their keys, those that are trained on, too."""
        found: dict[str, str] = {}
        for name, entry in self.comparison.models.items():
            data = self.config(name, self.comparison.seeds[0]).data
            if entry.recipe and data.train not in (None, *found.values()):
                key = f"{name}: data.train" if "data.train" in found else "data.train"
                found[key] = str(data.train)
            found |= {f"data.eval.{one}": path for one, path in data.eval.items()}
        return found | {f"data.{one}": path for one, path in self.comparison.data.items()}

    def absent_data(self) -> dict[str, str]:
        """Returns those of `data_named` that are not there."""
        return {
            key: path
            for key, path in self.data_named().items()
            if not IMPORT_PATH.match(path) and not Path(path).expanduser().exists()
        }

    def write(self) -> None:
        """Writes the tables of what is finished by now, and what the report is to be of."""
        overrides = "".join(f" {one}" for one in self.overrides)
        lines = []
        for name, entry in self.comparison.models.items():
            runs = {seed: self.folder(name, seed).name for seed in self.comparison.seeds}
            key = self.key(name, "")
            judge = key.judge if self.judge is not None else ""
            line = ComparedLine(title=entry.title, prompt=key.prompt, runs=runs, judge=judge)
            if isinstance(entry, SizedEntry):
                line.method, line.examples = entry.method, entry.examples
            lines.append(line)
        reference = self.comparison.models[self.comparison.reference].title
        titles = {name: entry.title for name, entry in self.comparison.models.items()}
        claims = [claim.named(titles) for claim in self.comparison.claims]
        compared = Compared(reference=reference, lines=lines, claims=claims, by=self.groups())
        compared.write(self.out)
        data = list(self.data_sets())
        models = models_of(compared.read_lines(self.out), data)
        tables = compare_models(models, data, reference, compared.by)
        found = check_claims(claims, models, compared.seconds(self.out))
        write_tables(self.out, f"rarl compare {self.source}{overrides}", *tables, claims=found)


def read_plan(path: Path, overrides: list[str], check: bool = True) -> FoundComparison:
    """`out=…`, `seeds=[…]`, `reference=…` and `judged_by.…=…` set the comparison's own keys, all
    other overrides go to every training. With `check`, what is named must be there. Raises
    UserError."""
    tree = anchored(read_yaml(path), path.parent, ("out", "data.*", "judged_by.model"))
    if "models" not in tree and {"model", "extends"} & tree.keys():
        raise UserError(f"{path}: is a run's, for `rarl train`; configs/compare has comparisons")
    own = ("out=", "seeds=", "reference=", "judged_by")
    rest = [one for one in overrides if not one.startswith(own)]
    for override in overrides:
        key, _, value = override.partition("=")
        if key in SET_BY:
            raise UserError(f"{override}: every training has its own {key}; set {SET_BY[key]}")
        if key == "out":
            tree["out"] = str(Path(value).expanduser().absolute())
        elif key == "reference":
            tree["reference"] = value
        elif key.split(".")[0] == "judged_by":
            apply_override(tree, override)
        elif key == "seeds":
            tree["seeds"] = listed_numbers(override)
    comparison = by_examples(validated(Comparison, tree, (), path))
    plan = FoundComparison(comparison, path.parent, Path(comparison.out), path, rest)
    if check:
        plan.check()
    return plan


def run_rarl(arguments: list[str]) -> int:
    """Runs one command in a process of its own; returns its exit status."""
    return run_to_its_end([sys.executable, "-m", "rarl", *arguments])


def compare(
    path: Path,
    overrides: list[str],
    note: Callable[[str], Any],
    run: Callable[[list[str]], int] = run_rarl,
) -> Path:
    """Does what is missing, part by part; returns the folder with the tables. Raises UserError if a
    part fails."""
    plan = read_plan(path, overrides)
    carry_out(plan.tasks(), note, run, plan.write)
    return plan.out


def carry_out(
    tasks: Sequence[Task],
    note: Callable[[str], Any],
    run: Callable[[list[str]], int],
    write: Callable[[], Any],
) -> None:
    """Runs one after the other the tasks that are not done yet; `write` is called after each, and
    at the end. Raises UserError if one fails."""
    for number, task in enumerate(tasks, start=1):
        if not task.outgrown and all(path.is_file() for path in task.makes):
            continue
        note(f"[{number}/{len(tasks)}] {task.title}")
        task.prepare()
        status = run(task.arguments)
        if status == 130:
            raise KeyboardInterrupt
        if status != 0:
            raise UserError(f"{task.title}: failed, see above; the same command goes on from there")
        write()
    write()
