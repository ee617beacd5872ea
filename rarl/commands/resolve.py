"""From a configuration to what is on this machine: device, model, adapter, data, run directory.
Everything that can fail before Ray starts fails here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rarl.config import IMPORT_PATH, Config, JudgeConfig, PromptsConfig
from rarl.data.mixture import read_mixture
from rarl.data.parquet import ParquetRows, parquet_files
from rarl.data.prepared import RenderPrompt
from rarl.data.stream import PreparerSettings
from rarl.errors import UserError
from rarl.evaluation import ways
from rarl.evaluation.groups import require_columns
from rarl.evaluation.measurements import judge_name
from rarl.files import file_hash
from rarl.judge.backends import cannot_see
from rarl.judge.client import check_judge
from rarl.planning.data import require_room_at_first_sight
from rarl.planning.memory import MemoryPlan, require_memory
from rarl.prepare.card import card_splits
from rarl.prompts import has_rationale, imitation_prompts, training_prompts
from rarl.rewards.registry import find_rewards
from rarl.system.device import Device, Dtype, resolve_device, resolve_dtype
from rarl.system.imports import import_object, own_error
from rarl.system.models import (
    model_sees,
    require_fitting_adapter,
    require_known_model,
    resolve_adapter,
    resolve_model,
)
from rarl.training.run_dir import RunDir, flatten, open_run_dir


@dataclass(frozen=True)
class Setup:
    """A configuration with every name looked up on this machine."""

    config: Config
    run_dir: RunDir
    device: Device
    dtype: Dtype
    # None: on a CPU.
    memory: MemoryPlan | None
    model_path: str
    start_adapter: Path | None
    # The model of a judge of the run's own; None: it has none.
    judge_path: str | None
    # None: the run is only measured.
    train_data: str | None
    eval_data: dict[str, str]
    # What the run directory was made with; `config` may measure it with other data or another
    # judge.
    made_with: Config

    @property
    def evaluation(self) -> Path:
        """The folder of the measurements."""
        return self.run_dir.evaluation

    @property
    def own_prompt(self) -> str:
        """The family of wordings that the run was made to be measured with."""
        return self.made_with.prompts.eval

    @property
    def judge(self) -> str:
        """The judge's name in the keys of measurements."""
        return judge_name(self.config.judge, self.made_with.judge)

    @property
    def own_judge(self) -> str:
        """The name of the judge that the run was made with."""
        return judge_name(self.made_with.judge, self.made_with.judge)

    def preparer(
        self, data_path: str, prompts: RenderPrompt, blank: bool = False
    ) -> PreparerSettings:
        """Returns what Ray Data's workers need to prepare a data set's rows; `blank` puts grey
        pictures in place of its images."""
        return PreparerSettings(
            data_path, self.model_path, prompts, self.config.data.max_pixels, blank
        )


# What may differ when a finished run is measured: it is part of the measurement's key, or it
# changes no reply.
FREE_TO_MEASURE = (
    "data.eval",
    "data.allow_same_files",
    "evaluation.by",
    "prompts.eval",
    "judge",
    "device",
    "rollout.num_actors",
    "rollout.timeout_seconds",
    "rollout.max_model_length",
    "rollout.kv_cache_mib",
    "rollout.gpu_memory_share",
)


def resolve(config: Config, made_with: Config | None = None) -> Setup:
    """Looks everything up and opens the run directory. `made_with` is what the run directory was
    made with, if it is only to be measured: the training data may then be gone. Raises
    UserError."""
    own = made_with or config
    for name in config.data.eval:
        require_free_name(f"data.eval.{name}", name)
    if made_with is not None:
        require_same_run(config, made_with)
    find_rewards(config.rewards)
    training_prompts(config.prompts, config.seed)
    if made_with is None or RunDir(Path(config.run_dir)).adapter.is_dir():
        require_other_judge(own, config.judge)
    if config.asks_judge():
        check_judge(config.judge)
    judge_path = resolve_judge(config.judge) if config.asks_local_judge(made_with is None) else None
    start_adapter = (
        resolve_adapter(config.model.adapter, config.model.lora) if config.model.adapter else None
    )
    device = resolve_device(config)
    dtype = resolve_dtype(config, device)
    model_path = resolve_model(config.model.path)
    require_known_model(config.model.path, model_path)
    if start_adapter is not None and made_with is None:
        require_fitting_adapter(str(config.model.adapter), start_adapter, model_path)
    memory = require_memory(config, model_path) if device == "cuda" else None
    sources = {f"data.eval.{name}": path for name, path in config.data.eval.items()}
    if made_with is None:
        if config.data.train is None:
            raise UserError("data.train=null: there is nothing to train on; name a data set")
        require_interim(config)
        sources["data.train"] = config.data.train
    for key, path in sources.items():
        find_data(key, path)
    at_hand = {key: path for key, path in sources.items() if not IMPORT_PATH.match(path)}
    measured = [f"data.eval.{name}" for name in config.data.eval]
    if at_hand.keys() >= set(measured):
        require_columns(config.evaluation.by, {key: at_hand[key] for key in measured})
    require_held_out(own, config, at_hand)
    if made_with is None:
        if config.method == "sft" and "data.train" in at_hand:
            what_is_imitated(at_hand["data.train"], config.prompts)
        if not RunDir(Path(config.run_dir)).summary.is_file():
            require_room_at_first_sight(config, model_path, True, [config.prompts.eval])
    # Only now, so that a start that is refused leaves nothing.
    here = own.model_copy(update={"run_dir": config.run_dir})
    run_dir = open_run_dir(here, trains=made_with is None)
    data = {
        key: resolve_data(key, path, config.seed, run_dir.data) for key, path in sources.items()
    }
    if len(at_hand) < len(data):
        require_held_out(own, config, data)
        require_columns(config.evaluation.by, {key: data[key] for key in measured})
    train_data = data.pop("data.train", None)
    return Setup(
        config=config,
        run_dir=run_dir,
        device=device,
        dtype=dtype,
        memory=memory,
        model_path=model_path,
        start_adapter=start_adapter,
        judge_path=judge_path,
        train_data=train_data,
        eval_data={key.removeprefix("data.eval."): path for key, path in data.items()},
        made_with=own,
    )


def require_interim(config: Config) -> None:
    """Raises UserError where what is measured on the way cannot be."""
    asked = config.evaluation
    if asked.every and config.method == "sft":
        raise UserError(
            f"evaluation.every={asked.every}: only reinforcement is measured on the way; set it to "
            "0 with method=sft"
        )
    if asked.validation is not None and asked.validation not in config.data.eval:
        known = ", ".join(config.data.eval) or "nothing"
        raise UserError(
            f"evaluation.validation={asked.validation}: no such data set in data.eval, which "
            f"names {known}"
        )
    if not asked.every and asked.validation is not None:
        raise UserError(
            "evaluation.validation: is measured every evaluation.every steps, which is 0; set it "
            "to 20, say"
        )
    if asked.validation is None and asked.patience is not None:
        raise UserError("evaluation.patience: needs evaluation.validation, which is not set")


def require_other_judge(own: Config, judge: JudgeConfig) -> None:
    """Raises UserError where `judge` measures what was trained with `own`, and gave its rewards."""
    paid = own.rewards.get("judge")
    if own.method != "grpo" or paid is None or not paid.weight:
        return
    if judge.evaluate and not judge.allow_same and is_same_judge(own.judge, judge):
        raise UserError(
            f"judge.evaluate=true: {judge.model or judge.url or 'the rules'} would judge a policy "
            "that it gave the rewards, and that has learnt to please it: name another judge "
            "(judge.backend, judge.model, judge.url), or set judge.allow_same=true"
        )


def is_same_judge(one: JudgeConfig, other: JudgeConfig) -> bool:
    """Tells whether two judges are one: the rules, a model by its name, wherever it runs, or an
    application of Ray Serve by its address."""
    if "serve" in (one.backend, other.backend):
        return (one.backend, one.url) == (other.backend, other.url)
    names = [Path(judge.model).name.lower() if judge.model else None for judge in (one, other)]
    return names[0] == names[1]


def resolve_judge(config: JudgeConfig) -> str:
    """Returns the folder of the judge's model. Raises UserError where it is not there, or is to see
    and cannot."""
    path = resolve_model(str(config.model), "judge.model")
    if config.image and not model_sees(path):
        raise cannot_see(str(config.model), "it reads text alone, by its config.json")
    return path


def require_same_run(config: Config, own: Config) -> None:
    """Raises UserError if a measurement would not be of this run."""
    held, wanted = flatten(own.model_dump()), flatten(config.model_dump())
    for key in sorted({*held, *wanted} - {"run_dir"}):
        if held.get(key) != wanted.get(key) and not key.startswith(FREE_TO_MEASURE):
            raise UserError(
                f"{key}={wanted.get(key)}: the run was made with {held.get(key)}, and a "
                f"measurement cannot change it; it may change {', '.join(FREE_TO_MEASURE)}"
            )
    for name, path in config.data.eval.items():
        if own.data.eval.get(name, path) != path:
            raise UserError(
                f"data.eval.{name}={path}: the run knows {own.data.eval[name]} by that name; "
                f"choose another, as in data.eval.{name}-2={path}"
            )


def find_data(key: str, path: str) -> None:
    """Raises UserError when a Parquet file or folder is missing or lacks a column, or when held-out
    splits would be trained on. Functions are called later."""
    if not IMPORT_PATH.match(path):
        place = Path(path).expanduser()
        if not place.exists():
            raise UserError(
                f"{key}={path}: no such file or folder; make a data set with `rarl prepare`"
            )
        for part in read_mixture(place) if key == "data.train" else ():
            require_no_held_out_split(f"{key}={path}", part.path)
        ParquetRows(place)


def require_free_name(key: str, name: str) -> None:
    """Raises UserError for a measured data set that is called as the training data are."""
    if name == "train":
        raise UserError(f"{key}: this is what the training data are called; rename it")


def require_one_path(measured: Iterable[tuple[str, str, str]]) -> None:
    """Raises UserError where one name stands for two data sets, which one table would mix.
    `measured` has a key, a name and a path of each."""
    first: dict[str, tuple[str, str]] = {}
    for key, name, path in measured:
        require_free_name(key, name)
        other_key, other = first.setdefault(name, (key, path))
        if place_of(path) != place_of(other):
            raise UserError(
                f"{key}={path}: {other_key} is {other}, and both would be one data set of the "
                "tables; give one of them another name"
            )


def place_of(path: str) -> str:
    """Returns what two ways to write one path have in common; a function's name as it is."""
    return path if IMPORT_PATH.match(path) else str(Path(path).expanduser().resolve())


def require_no_held_out_split(named: str, folder: Path) -> None:
    """Raises UserError for a prepared folder as a whole where one of its splits is not for
    training."""
    splits = card_splits(folder)
    held_out = [split for split in splits if split in ("validation", "test")]
    if held_out:
        example = folder / f"{'train' if 'train' in splits else held_out[0]}.parquet"
        raise UserError(
            f"{named}: {folder} as a whole includes its {' and '.join(held_out)} split; "
            f"name the split file, such as {example}"
        )


def training_data(config: Config, run_dir: RunDir) -> str | None:
    """Returns where a run's training data are, or None where they are not at hand."""
    place = ways.training_data(config, run_dir.path)
    return str(place.resolve()) if place is not None and place.exists() else None


def require_held_out(own: Config, config: Config, data: dict[str, str]) -> None:
    """Raises UserError where a measured data set, given by key and path, has a file of the training
    data, which are among them or the run's own, or one with the same content."""
    trained = data.get("data.train") or training_data(own, RunDir(Path(config.run_dir)))
    measured = {key: path for key, path in data.items() if key != "data.train"}
    if trained is None or config.data.allow_same_files:
        return
    held = [(file, file.stat().st_size) for file in files_of(trained)]
    for key, path in measured.items():
        for file in files_of(path):
            size = file.stat().st_size
            for other, its_size in held:
                same = file == other
                if same or (size == its_size and file_hash(file) == file_hash(other)):
                    what = "is a file of" if same else f"has the same content as {other}, of"
                    raise UserError(
                        f"{key}={path}: {file} {what} data.train: results there say nothing about "
                        "unseen questions; name a test split, or set data.allow_same_files=true"
                    )


def files_of(path: str) -> list[Path]:
    parts = read_mixture(Path(path))
    return [file.resolve() for part in parts for file in parquet_files(part.path)]


def resolve_data(key: str, path: str, seed: int, folder: Path) -> str:
    """Returns where the Parquet file or folder is. A `module:function` is called once, with the
    path to write to, whose folder is there, and the seed. Raises UserError for what the function
    raises, and if what it wrote is no data set; then the next start calls it again."""
    if not IMPORT_PATH.match(path):
        return str(Path(path).expanduser().resolve())
    made = folder / f"{key}.parquet"
    if not made.exists():
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as unfinished:
            written = Path(unfinished) / made.name
            function = import_object(path)
            try:
                function(written, seed)
                if not written.exists():
                    raise UserError("it wrote nothing to the path that it was given")
                ParquetRows(written)
            except UserError as error:
                told = str(error).replace(str(written), "what it wrote")
                raise UserError(f"{key}={path}: {told}") from None
            except Exception as error:
                raise UserError(f"{key}={path}: {own_error(error)}") from None
            written.rename(made)
    return str(made.resolve())


def what_is_imitated(data: str, prompts: PromptsConfig) -> str:
    """Returns in words how many rows have a rationale, and how the others are asked. Raises
    UserError where every prompt asks for thinking and no row has a rationale."""
    plan, rationales = imitation_prompts(prompts, 0), ParquetRows(data).column("rationale")
    has, rows = sum(map(has_rationale, rationales)), len(rationales)
    drawn = {name for name, weight in prompts.train.items() if weight}
    answering = {name for name, weight in plan.without.weights.items() if weight}
    families = ", ".join(sorted(answering))
    if drawn <= answering:
        return f"the answer alone is imitated, as prompts.train ({families}) asks for"
    if not has and not answering & drawn:
        raise UserError(
            f"{data}: not one of {rows} rows has a rationale to imitate, but prompts.train asks "
            "for thinking alone: add rationales, or set prompts.train={none: 1} prompts.eval=none"
        )
    told = f"{has} of {rows} rows have a rationale to imitate"
    if has < rows:
        others = f"the other {rows - has} are" if has else "they are"
        told += f"; {others} asked for the answer alone (prompts of the family {families})"
    if not has and plan.with_rationale.families[prompts.eval].form != "answer":
        told += (
            f". Measured is with prompts.eval={prompts.eval}, which asks for thinking that is not "
            f"imitated: for a fair figure set prompts.eval={min(answering)}"
        )
    return told
