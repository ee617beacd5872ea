"""`rarl federate`: rounds of training at several sites, whose adapters are merged after each, on
one machine.

In a round every site trains on its own data, from the adapter that the round before ended with;
then `rarl merge` makes one of theirs. Between sites go adapters and counts of answer tokens, which
lie in the adapters' folders; no run reads another site's data, but the one of all data together, if
it is asked for. Each run is a directory in `out`, and what is finished is not repeated.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rarl.adapters.origin import WEIGHTS, read_origin
from rarl.commands.compare import Name, Task, carry_out, run_rarl
from rarl.commands.resolve import find_data
from rarl.config import IMPORT_PATH, Config, Section, dump_config, load_config
from rarl.data.parquet import ParquetRows
from rarl.errors import UserError
from rarl.evaluation import measurements
from rarl.evaluation.lines import Compared, ComparedLine, models_of
from rarl.evaluation.results import compare_models
from rarl.evaluation.tables import write_tables
from rarl.evaluation.ways import training_data
from rarl.files import file_hash, replacing_folder, write_text
from rarl.keys import anchored_override, listed_numbers, read_yaml, validated
from rarl.paths import anchored
from rarl.training.run_dir import RunDir, changes_of, refused_of

MERGED = "merged"  # what the adapter after a round is called among the sites'
TOGETHER = "all data together"
# The keys of a run that a federation sets, and where they come from.
SET_BY = {"run_dir": "out", "seed": "seeds", "data.train": "sites", "model.adapter": "rounds"}


class Site(Section):
    """One site: whose data stay there, and whose adapter travels."""

    data: str  # its training data, as data.train
    # its share of the merged adapter; of all sites or of none, which takes the answer tokens
    weight: Annotated[float, Field(gt=0)] | None = None
    overrides: list[str] = Field(default_factory=list)  # key=value, for its trainings


class Federation(Section):
    """A federation's file."""

    out: str  # the folder of tables, report and runs
    recipe: str  # what every site trains with
    sites: Annotated[dict[Name, Site], Field(min_length=2)]  # name → its data
    rounds: Annotated[int, Field(gt=0)] = 1  # each of them has the recipe's train.steps
    # everything is done once with each
    seeds: Annotated[list[int], Field(min_length=1)] = Field(default_factory=lambda: [0])
    # average: of A and of B, as Fed-MedLoRA; svd: of the changes B A, cut back to the rank
    merge: Literal["average", "svd"] = "average"
    # shares by exp(1 - loss) on these data (Fed-MedLoRA+), instead of by answer tokens
    validation: str | None = None
    # name → what every adapter is measured on; without any, the recipe's data.eval
    eval: dict[str, str] = Field(default_factory=dict)
    # each site by itself, with as many steps as in all rounds; with one round it is that
    alone: bool = True
    # all data in one place, with as many steps as all sites have in all rounds: the ceiling
    together: bool = False
    overrides: list[str] = Field(default_factory=list)  # key=value, for every training

    @model_validator(mode="after")
    def possible(self) -> Federation:
        """Raises ValueError for shares that contradict each other, and for a name that is taken."""
        given = [site.weight is not None for site in self.sites.values()]
        if any(given) and not all(given):
            raise ValueError("sites: either all of them have a weight or none has")
        if any(given) and self.validation is not None:
            raise ValueError("validation: the sites have weights already; give one of the two")
        if MERGED in self.sites:
            raise ValueError(
                f"sites.{MERGED}: this is what the adapter of all is called; rename it"
            )
        return self


@dataclass(frozen=True)
class FoundFederation:
    """A federation with every file found. `where` is the folder of its YAML file."""

    federation: Federation
    where: Path
    source: Path
    overrides: list[str]

    @property
    def out(self) -> Path:
        return Path(self.federation.out)

    def folder(self, name: str, seed: int, turn: int | None = None) -> Path:
        """Returns the run directory of a site, of the merged adapter, or of something that has no
        rounds."""
        return self.out / f"{f'round-{turn}-' if turn else ''}{name}-{seed}"

    def training(self, site: str | None, seed: int, *own: str) -> list[str]:
        """Returns what `rarl train` is given for a site, or for all together."""
        federation = self.federation
        listed = [*federation.overrides, *(federation.sites[site].overrides if site else ())]
        overrides = [anchored_override(one, self.where) for one in listed]
        if federation.eval:
            overrides.append(f"data.eval={json.dumps(federation.eval)}")
        return [federation.recipe, *overrides, *self.overrides, f"seed={seed}", *own]

    def turn_of(self, site: str, seed: int, turn: int) -> list[str]:
        """Returns the training of a site in a round: from the second on it begins with what the
        round before came to."""
        own = [f"data.train={self.federation.sites[site].data}"]
        if turn > 1:
            own.append(f"model.adapter={self.folder(MERGED, seed, turn - 1)}")
        return self.training(site, seed, *own, f"run_dir={self.folder(site, seed, turn)}")

    def steps(self, site: str) -> int:
        """Returns the steps of a site in one round."""
        return config_of(self.turn_of(site, self.federation.seeds[0], 1)).train.steps

    def alone(self, site: str, seed: int) -> list[str]:
        """Returns the training of a site by itself."""
        data = f"data.train={self.federation.sites[site].data}"
        steps = f"train.steps={self.federation.rounds * self.steps(site)}"
        return self.training(
            site, seed, data, steps, f"run_dir={self.folder(f'alone-{site}', seed)}"
        )

    def together(self, seed: int) -> list[str]:
        """Returns the training on all data."""
        steps = self.federation.rounds * sum(self.steps(site) for site in self.federation.sites)
        own = [f"data.train={self.mixture(seed)}", f"train.steps={steps}"]
        return self.training(None, seed, *own, f"run_dir={self.folder('together', seed)}")

    def mixture(self, seed: int) -> Path:
        """Returns the file that names the data of all sites."""
        return self.out / f"together-{seed}.yaml"

    def merged_config(self, seed: int, turn: int) -> Config:
        """Returns what the merged adapter of a round is measured with."""
        own = ["data.train=null", f"run_dir={self.folder(MERGED, seed, turn)}"]
        return config_of(self.training(None, seed, *own))

    def merging(self, seed: int, turn: int) -> list[str]:
        """Returns what `rarl merge` is given after a round."""
        federation = self.federation
        runs = [str(self.folder(site, seed, turn)) for site in federation.sites]
        weights = [site.weight for site in federation.sites.values() if site.weight is not None]
        by_hand = ["--weights", ",".join(map(str, weights))] if weights else []
        by_loss = ["--validation", federation.validation] if federation.validation else []
        rank = self.merged_config(seed, turn).model.lora.rank
        how = ["--rank", str(rank)] if federation.merge == "svd" else []
        out = ["--out", str(self.folder(MERGED, seed, turn) / "adapter")]
        return [*runs, *by_hand, *by_loss, *how, *out]

    def tasks(self) -> list[Task]:
        """Returns everything, in order, seed by seed."""
        return [task for seed in self.federation.seeds for task in self.tasks_of(seed)]

    def tasks_of(self, seed: int) -> list[Task]:
        """Returns the trainings, merges and measurements with one seed."""
        federation, tasks = self.federation, []
        for turn in range(1, federation.rounds + 1):
            label = f"round {turn}, seed {seed}"
            for site in federation.sites:
                what = self.turn_of(site, seed, turn)
                tasks.append(self.train(f"{site}, {label}: training", what, seed))
            config, run = self.merged_config(seed, turn), self.folder(MERGED, seed, turn)
            ready = partial(self.make_ready, config, seed)
            made = [run / "adapter" / WEIGHTS]
            merge = ["merge", *self.merging(seed, turn)]
            tasks.append(Task(f"{MERGED}, {label}: merging", merge, made, prepare=ready))
            keys = [measurements.own_measurement(config, "trained", d) for d in config.data.eval]
            made = [measurements.marker_of(run / "evaluation", key) for key in keys]
            title = f"{MERGED}, {label}: measuring"
            tasks.append(Task(title, ["eval", str(run)], made, prepare=ready))
        for site in federation.sites if self.has_alone else ():
            tasks.append(self.train(f"{site} alone, seed {seed}", self.alone(site, seed), seed))
        if federation.together:
            task = self.train(f"{TOGETHER}, seed {seed}", self.together(seed), seed)
            tasks.append(task)
        return tasks

    @property
    def has_alone(self) -> bool:
        return self.federation.alone and self.federation.rounds > 1

    def train(self, title: str, what: list[str], seed: int) -> Task:
        """Returns a training as a task."""
        config = config_of(what)
        run_dir = RunDir(Path(config.run_dir))
        outgrown = bool(changes_of(run_dir, config))
        ready = partial(self.make_ready, config, seed)
        return Task(title, ["train", *what], [run_dir.summary], outgrown, ready)

    def make_ready(self, config: Config, seed: int) -> None:
        """Makes the run directory, where there is none, with what another run of the seed has
        measured of the base: replies that would be the same are not asked for again."""
        run_dir = RunDir(Path(config.run_dir))
        if config.data.train == str(self.mixture(seed)):
            self.write_mixture(seed)
        if not run_dir.holds_steps():
            write_text(run_dir.config, dump_config(config))
        own = run_dir.evaluation / "model=base"
        for other in sorted(self.out.glob(f"*-{seed}")):
            measured = other / "evaluation" / "model=base"
            if not own.exists() and measured.is_dir() and replies_alike(RunDir(other), config):
                with replacing_folder(own) as temporary:
                    shutil.copytree(measured, temporary, dirs_exist_ok=True)

    def write_mixture(self, seed: int) -> None:
        """Names the data of all sites in one file, each row as likely as any other."""
        paths: list[Path] = []
        for site in self.federation.sites:
            config = config_of(self.turn_of(site, seed, 1))
            place = training_data(config, Path(config.run_dir))
            assert place is not None, "a site has data"
            paths.append(place.resolve())
        rows = {str(path): len(ParquetRows(path)) for path in paths}
        write_text(self.mixture(seed), json.dumps(rows, indent=2) + "\n")

    def check(self) -> None:
        """Raises UserError for what would only be noticed after hours."""
        federation = self.federation
        for site, entry in federation.sites.items():
            find_data(f"sites.{site}.data", entry.data)
        for name, path in federation.eval.items():
            find_data(f"eval.{name}", path)
        if federation.validation is not None:
            if IMPORT_PATH.match(federation.validation):
                raise UserError(f"validation={federation.validation}: name a Parquet file")
            find_data("validation", federation.validation)
        for seed in federation.seeds:
            fixed = [
                config_of(self.turn_of(site, seed, turn))
                for turn in self.turns
                for site in federation.sites
            ]
            fixed += [self.merged_config(seed, turn) for turn in self.turns]
            further = [self.alone(site, seed) for site in federation.sites if self.has_alone]
            further += [self.together(seed)] if federation.together else []
            for config in fixed:
                require_same(config, lambda changes, run_dir: changes)
            for config in map(config_of, further):
                require_same(config, refused_of)
            for turn in self.turns:
                self.check_merged(seed, turn)

    @property
    def turns(self) -> range:
        return range(1, self.federation.rounds + 1)

    def check_merged(self, seed: int, turn: int) -> None:
        """Raises UserError if a merged adapter is of other adapters than the sites have now."""
        run = self.folder(MERGED, seed, turn)
        origin = read_origin(run / "adapter") if (run / "adapter").is_dir() else None
        for part in origin.parts if origin else ():
            weights = self.out / part.name / "adapter" / WEIGHTS
            if not weights.is_file() or file_hash(weights) != part.sha256:
                raise UserError(
                    f"{run}: was merged from another adapter than {part.name} has now; delete it "
                    "and the rounds after it, or set another `out`"
                )

    def write(self) -> None:
        """Writes the tables of what is finished by now, and what the report is to be of."""
        federation, lines = self.federation, []

        def add(title: str, name: str, turn: int | None = None) -> None:
            runs = {seed: self.folder(name, seed, turn).name for seed in federation.seeds}
            lines.append(ComparedLine(title=title, prompt=prompt, runs=runs))

        first = self.merged_config(federation.seeds[0], 1)
        prompt, data = first.prompts.eval, list(first.data.eval)
        for site in federation.sites if self.has_alone else ():
            add(f"{site} alone", f"alone-{site}")
        for turn in self.turns:
            for name in (*federation.sites, MERGED):
                add(f"{name}, round {turn}", name, turn)
        if federation.together:
            add(TOGETHER, "together")
        compared = Compared(reference=f"{MERGED}, round {federation.rounds}", lines=lines)
        compared.write(self.out)
        models = models_of(compared.read_lines(self.out), data)
        overrides = "".join(f" {one}" for one in self.overrides)
        tables = compare_models(models, data, compared.reference)
        write_tables(self.out, f"rarl federate {self.source}{overrides}", *tables)


def config_of(training: Sequence[str]) -> Config:
    """Returns the configuration that `rarl train` makes of its arguments."""
    recipe, *overrides = training
    return load_config(recipe, overrides)


def replies_alike(other: RunDir, config: Config) -> bool:
    """Tells whether the base replies in another run as it would with this configuration."""
    changes = [one for one in changes_of(other, config) if one.key != "model.adapter"]
    return other.config.exists() and not any(one.changes_replies for one in changes)


def require_same(config: Config, refused: Callable[[Any, RunDir], Sequence[Any]]) -> None:
    """Raises UserError where the run directory holds a run of another configuration."""
    run_dir = RunDir(Path(config.run_dir))
    if run_dir.holds_steps() and (changes := refused(changes_of(run_dir, config), run_dir)):
        held = f"holds a run of another configuration ({changes[0]})"
        raise UserError(f"{run_dir.path}: {held}; delete it, or set another `out`")
    measurements.require_readable(run_dir.path)


def read_plan(path: Path, overrides: Sequence[str]) -> FoundFederation:
    """`out=…`, `seeds=[…]` and `rounds=…` set the federation's own keys, all other overrides go to
    every training. Raises UserError."""
    tree = anchored(
        read_yaml(path), path.parent, ("out", "recipe", "validation", "sites.*.data", "eval.*")
    )
    if "sites" not in tree:
        raise UserError(f"{path}: has no `sites`; configs/federate/tiny.yaml is a federation")
    own = [one for one in overrides if one.startswith(("out=", "seeds=", "rounds="))]
    own = [own_override(one) for one in own]
    for override in overrides:
        key = override.partition("=")[0]
        if key in SET_BY:
            raise UserError(f"{override}: a federation sets {key} itself, from `{SET_BY[key]}`")
    rest = [one for one in overrides if not one.startswith(("out=", "seeds=", "rounds="))]
    plan = FoundFederation(validated(Federation, tree, own, path), path.parent, path, rest)
    plan.check()
    return plan


def own_override(override: str) -> str:
    """Returns `out=…` relative to the current folder, `seeds=0,1` as a list, and other overrides as
    they are. Raises UserError for seeds that are no numbers."""
    key, _, value = override.partition("=")
    if key == "out":
        return f"out={json.dumps(str(Path(value).expanduser().absolute()))}"
    return f"seeds={listed_numbers(override)}" if key == "seeds" else override


def federate(
    path: Path,
    overrides: Sequence[str],
    note: Callable[[str], Any],
    run: Callable[[list[str]], int] = run_rarl,
) -> Path:
    """Does what is missing, part by part; returns the folder with the tables. Raises UserError if a
    part fails."""
    plan = read_plan(path, overrides)
    carry_out(plan.tasks(), note, run, plan.write)
    return plan.out
