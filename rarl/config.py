"""One configuration tree. `load_config` reads YAML, applies `key=value` overrides, names a mistake
in one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from rarl.errors import UserError
from rarl.keys import anchored_override, read_yaml, validated
from rarl.paths import IMPORT_PATH as IMPORT_PATH
from rarl.paths import anchored
from rarl.schema import MOST_IMAGES

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A frozen group of keys that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LoraConfig(Section):
    """The adapter: always on the seven linear kinds of the language model; never on the vision
    tower, which vLLM could serve, since the shared-prefix update computes vision features once and
    without gradient; and without dropout (the sampler has none, and must be the policy)."""

    rank: Positive = 8  # of the adapter's matrices: how much it can hold
    alpha: Positive = 16  # its updates are scaled by alpha / rank


class ModelConfig(Section):
    path: str  # a folder, a Hub id, or `module:function` that returns a folder
    # a run directory, or a PEFT folder of the same shape, to start training from; what is measured
    # as the base, and the KL reference, stay the model without any adapter
    adapter: str | None = None
    # auto: float32 on CPU, bfloat16 on a GPU
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    lora: LoraConfig = LoraConfig()


class SelectConfig(Section):
    """Which of the training questions are asked, and how often; docs/evaluation.md tells of it."""

    # so many of the questions, drawn by the seed: fewer ones are among more; null: all
    examples: Positive | None = None
    # two numbers: from and to which share of right replies, as `rarl probe` found it, a question is
    # asked; null: whatever it is. A question that was not probed is left out
    difficulty: Annotated[list[Share], Field(min_length=2, max_length=2)] | None = None
    # of the questions of a step, those to which a near image has another answer, or that the same
    # image answers otherwise in near words
    hard_negatives: Annotated[float, Field(ge=0, lt=1)] = 0.0
    curriculum: bool = False  # the first time round, from what is easy by the probe to what is hard
    probe: str | None = None  # the run directory that was probed; null: this run's own

    @property
    def needs_probe(self) -> bool:
        return self.difficulty is not None or self.curriculum

    @property
    def selects(self) -> bool:
        """Whether not simply all questions are asked."""
        return self.needs_probe or bool(self.hard_negatives) or self.examples is not None

    @model_validator(mode="after")
    def possible(self) -> SelectConfig:
        if self.difficulty is not None and self.difficulty[0] > self.difficulty[1]:
            raise ValueError(f"data.select.difficulty={self.difficulty}: from above to")
        if self.curriculum and self.hard_negatives:
            raise ValueError(
                "data.select.curriculum and data.select.hard_negatives: one of them at a time"
            )
        return self


class DataConfig(Section):
    # canonical Parquet (file or folder), or `module:function` that writes one; null: nothing is
    # trained
    train: str | None
    eval: dict[str, str] = {}  # name → the same; measured before and after training
    # images are shrunk to at most this area, all of a question together; None: the processor's own
    # bound for each
    max_pixels: Positive | None = None
    max_images: Positive = MOST_IMAGES  # of one question; a row with more is a bad one
    on_bad_row: Literal["fail", "skip"] = "fail"  # skip: counted, and listed in the run directory
    allow_same_files: bool = False  # data.eval may name files that data.train names
    select: SelectConfig = SelectConfig()


class RolloutConfig(Section):
    num_actors: Positive = 1  # vLLM engines; on GPUs one each
    group_size: Annotated[int, Field(ge=2)] = 8  # completions per prompt
    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0  # vLLM takes no more than 2
    max_completion_tokens: Positive = 512  # of one reply; what is longer is cut
    # Updates between the adapter that samples and the policy that learns. 1: the next batch is
    # sampled while this one trains; the importance weight corrects for it. 0: strictly on-policy.
    max_staleness: Annotated[int, Field(ge=0, le=1)] = 0
    # from one group to the next, before an engine counts as hung and is started anew
    timeout_seconds: Positive = 1800
    max_model_length: Positive = 2048  # prompt with image tokens, and completion
    # replies that an engine writes at once; more are faster while the cache has room for them
    max_sequences: Positive = 128
    # CPU: a fixed budget, since vLLM's own sizing takes most of the machine's memory
    kv_cache_mib: Positive = 128
    # GPU: of the card, for vLLM's weights and cache; the trainer has the rest
    gpu_memory_share: Fraction = 0.4


class GrpoConfig(Section):
    """None takes what the loss's own paper uses; see the table in rarl/grpo/loss.py."""

    # whose loss: it decides how tokens are averaged and how ratios are clipped
    loss: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"] = "grpo"
    # ε of the ratio's lower bound, and of the upper one
    clip: Annotated[float, Field(gt=0)] | None = None
    # ε of the upper bound, where it is another
    clip_high: Annotated[float, Field(gt=0)] | None = None
    scale_advantages: bool | None = None  # by the group's standard deviation
    # leave out completions that were cut off at max_completion_tokens
    drop_truncated: bool | None = None
    # weight of the KL to the base model; 0 skips the reference pass
    kl_beta: Annotated[float, Field(ge=0)] = 0.0
    # correction for what the sampler drew from
    importance: Literal["truncated", "masked", "none"] = "truncated"
    # C: the largest weight; "masked" drops tokens above it
    importance_cap: Annotated[float, Field(ge=1)] = 2.0
    # optimizer steps per batch; the ratio leaves 1, and clipping begins, with the second
    epochs: Positive = 1
    # Batches that a step may draw to replace groups without spread, from which nothing is learnt
    # (DAPO, section 3.2). 0: such groups stay in, with zero advantage.
    max_refills: Annotated[int, Field(ge=0)] = 0


class TrainConfig(Section):
    steps: Positive = 200  # batches that are learnt from
    prompts_per_step: Positive = 16  # questions in a batch, of rollout.group_size replies each
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5  # of AdamW
    warmup_steps: Annotated[int, Field(ge=0)] = 5  # in which the rate rises from 0
    schedule: Literal["constant", "cosine"] = "constant"  # of the rate after that; cosine: to 0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0  # a longer gradient is shortened to it
    # Per forward and backward pass, a prompt counted once; bounds memory. A group that is longer is
    # cut, and its prompt computed again for each part.
    micro_batch_tokens: Positive = 4096
    # recompute each layer in the backward pass: a third slower, little memory
    gradient_checkpointing: bool = False
    # Mean |log-prob difference| between trainer and sampler above which the run stops. None: 0.001
    # in float32, 0.1 in bfloat16, where rounding alone gives about 0.01.
    max_sampler_mismatch: Annotated[float, Field(gt=0)] | None = None
    # Equal workers: each samples, scores and learns from its share of a step's prompts; the
    # gradient is that of all.
    num_workers: Positive = 1
    checkpoint_every: Positive = 1  # steps; at most so many are made again after a crash
    keep_checkpoints: Positive = 2  # the last ones, beside the best
    max_restarts: Annotated[int, Field(ge=0)] = 3  # of the train workers after a crash
    # Rewards for reasoning that say nothing about the data, or pay without looking. refuse: not
    # started, later warned of; warn: no more than warned of; stop: a run that has begun stops, too
    on_silent_reward: Literal["refuse", "warn", "stop"] = "refuse"
    # Where copies of metrics.jsonl go, through accelerate; `pip install` what is not there. Their
    # own environment variables say where their servers are: WANDB_*, MLFLOW_*, COMET_*, CLEARML_*,
    # SWANLAB_*, TRACKIO_*; Aim and DVCLive write into the run directory. Never a reason for a run
    # to fail: what a tracker raises is told once.
    trackers: list[
        Literal[
            "tensorboard",
            "wandb",
            "mlflow",
            "comet_ml",
            "aim",
            "clearml",
            "dvclive",
            "swanlab",
            "trackio",
        ]
    ] = ["tensorboard"]


class PromptsConfig(Section):
    """How a question is asked. Families of wordings are in rarl/prompts.yaml, and in a file of the
    same form that adds to them; see docs/prompts.md."""

    # family → weight; drawn per question by the seed
    train: dict[str, Annotated[float, Field(ge=0)]] = {"plain": 1.0}
    eval: str = "plain"  # the family, of which the first wording is used
    # a YAML file of families of your own; one with the name of a built-in family replaces it
    templates: str | None = None


class RewardConfig(Section):
    """One reward. In YAML a number alone is its weight; null takes the reward out."""

    weight: Annotated[float, Field(ge=0)]  # 0: computed and logged, but not counted
    # another reward, by whose value this one is multiplied: `format`, or `accuracy`; or a list
    gate: str | list[str] | None = None
    # to mean 0 and standard deviation 1 within each group, before it is weighted
    normalise: bool = False
    options: dict[str, Any] = {}  # keyword arguments of the reward's own

    @property
    def gates(self) -> list[str]:
        """The rewards that gate this one."""
        return [self.gate] if isinstance(self.gate, str) else self.gate or []


def read_rewards(value: Any) -> Any:
    """Bare weights as settings; rewards that are null left out."""
    if not isinstance(value, dict):
        return value
    return {
        name: {"weight": one} if isinstance(one, int | float) else one
        for name, one in value.items()
        if one is not None
    }


class JudgeConfig(Section):
    """Who scores correctness and explanation, for the reward `judge` and in evaluation."""

    # rules: deterministic, no model; local: an engine of the run's own, which starts and ends with
    # it; openai: any OpenAI-compatible server; serve: RARL's own Ray Serve application
    backend: Literal["rules", "local", "openai", "serve"] = "rules"
    # openai: up to /v1; serve: http://host:port/judge, or app:NAME in the same Ray cluster
    url: str | None = None
    # openai: the name that the server knows; local: a folder, a Hub id, or `module:function` that
    # returns a folder
    model: str | None = None
    # checklist: the reply as a whole; steps: each step of its reasoning by itself, for efficiency,
    # factuality and completeness
    rubric: Literal["checklist", "steps"] = "checklist"
    image: bool = False  # the judge is shown the image; its model must see
    # local, on GPUs: a card of the judge's own; false: beside a sampler and a train worker
    own_gpu: bool = False
    gpu_memory_share: Fraction = 0.25  # local, on GPUs: of the card, for its weights and cache
    api_key_env: str | None = None  # the environment variable that holds the key
    concurrency: Positive = 16  # requests in flight
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0  # of one attempt
    retries: Annotated[int, Field(ge=0)] = 3  # with back-off
    # a reply that could not be judged: count it, or end
    on_unreachable: Literal["continue", "stop"] = "continue"
    cache: bool = True  # verdicts are kept in the run directory and never asked for twice
    evaluate: bool = False  # judge the replies of the measurements too
    allow_same: bool = False  # the judge that gives the rewards may judge the measurements

    @model_validator(mode="after")
    def complete(self) -> JudgeConfig:
        if self.backend in ("openai", "serve") and not self.url:
            raise ValueError(f"judge.url is needed with judge.backend={self.backend}")
        if self.backend in ("openai", "local") and not self.model:
            raise ValueError(f"judge.model is needed with judge.backend={self.backend}")
        if self.backend == "rules" and (self.image or self.rubric != "checklist"):
            raise ValueError(
                "judge.image and judge.rubric are for a judge that is a model, and judge.backend="
                "rules has none; set judge.backend to local, openai or serve"
            )
        if self.backend == "serve" and self.rubric != "checklist":
            raise ValueError(
                "judge.rubric is the application's with judge.backend=serve: set it in the "
                "application's own args"
            )
        return self


class EvaluationConfig(Section):
    max_examples: Positive | None = None  # per data set, the first in its order; None: all
    # columns of the data, such as [sex, site, question_type], whose groups are compared: the worst,
    # the gap, and whether it is more than chance. It changes no reply
    by: list[str] = Field(default_factory=list)
    max_completion_tokens: Positive | None = None  # None: as in rollout
    # While reinforcement goes on, some questions of every measured data set are asked each so many
    # steps; 0: none
    every: Annotated[int, Field(ge=0)] = 0
    examples: Positive = 128  # questions of each data set then, always the same
    # One of data.eval: the run ends with the adapter that did best on it then. Take a split that
    # is not the test's
    validation: str | None = None
    # training ends when so many measurements in a row brought nothing better on it; null: never
    patience: Positive | None = None


class Config(Section):
    """Everything that decides what a run does. Written to `config.yaml` in the run directory."""

    run_dir: str  # where all is written; on a cluster, on storage that every node sees
    seed: Annotated[int, Field(ge=0)] = 0  # of data, sampling and adapter
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: what vLLM here is built for
    # grpo: reinforcement learning; sft: imitation of the reference answers, and of rationales where
    # the prompt asks
    method: Literal["grpo", "sft"] = "grpo"
    model: ModelConfig
    data: DataConfig
    rollout: RolloutConfig = RolloutConfig()
    prompts: PromptsConfig = PromptsConfig()
    # name or `module:function` → weight or settings
    rewards: Annotated[dict[str, RewardConfig], BeforeValidator(read_rewards)] = {
        "format": RewardConfig(weight=0.2),
        "accuracy": RewardConfig(weight=1.0),
    }
    judge: JudgeConfig = JudgeConfig()
    grpo: GrpoConfig = GrpoConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def asks_judge(self, trains: bool = True) -> bool:
        """Whether anybody asks the judge: a reward, if the run `trains`, or its measurements."""
        return self.judge.evaluate or (trains and "judge" in self.rewards)

    def asks_local_judge(self, trains: bool = True) -> bool:
        """Whether the judge's engine belongs to the run."""
        return self.judge.backend == "local" and self.asks_judge(trains)

    @model_validator(mode="after")
    def something_to_learn(self) -> Config:
        if self.method == "grpo" and not any(reward.weight for reward in self.rewards.values()):
            raise ValueError("rewards: at least one needs a weight above 0")
        return self

    @model_validator(mode="after")
    def work_for_every_worker(self) -> Config:
        if self.train.num_workers > self.train.prompts_per_step:
            raise ValueError(
                f"train.num_workers={self.train.num_workers}, but a step has only "
                f"train.prompts_per_step={self.train.prompts_per_step} prompts: each needs one"
            )
        return self


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Reads a YAML file and applies overrides such as `rollout.group_size=4` (values are YAML).
    Relative paths in a file are relative to it, those in overrides to the current folder.

    Raises UserError for an unreadable file, an unknown key (naming the nearest known one) or a
    wrong value.
    """
    tree = read_recipe(Path(path))
    if "models" in tree and "model" not in tree:
        raise UserError(f"{path}: is a comparison; `rarl compare` takes it")
    return config_from(tree, overrides or [], path)


def config_from(tree: dict[str, Any], overrides: Sequence[str], named: object) -> Config:
    """Returns the configuration that a tree with overrides makes, whose paths are relative to the
    current folder. Raises UserError, which names the override that is wrong, or else `named`."""
    here = [anchored_override(one, Path.cwd()) for one in overrides]
    config = validated(Config, tree, here, named)
    # In overrides, what the judge is called is a path or not by a key that stands elsewhere.
    return Config.model_validate(anchored(config.model_dump(), Path.cwd(), ["judge.model"]))


def is_comparison(path: Path) -> bool:
    """Tells whether a YAML file is of `rarl compare`. Raises UserError for one that is none."""
    tree = read_yaml(path)
    return "models" in tree and "model" not in tree


REPLACED = ("rewards", "prompts.train", "data.eval")  # taken whole from the recipe that names them


def read_recipe(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A YAML file, over the one that its key `extends` names (relative to its own folder), if it
    has one."""
    tree = anchored(read_yaml(path), path.parent)
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if not isinstance(parent, str):
        raise UserError(f"{path}: key 'extends': expected the path of a YAML file, got {parent!r}")
    if path.resolve() in above:
        raise UserError(f"{path}: extends itself, through {above[-1].name}")
    base = read_recipe(path.parent / parent, (*above, path.resolve()))
    own = tree.get("rewards")
    for name, setting in own.items() if isinstance(own, dict) and "rewards" in base else ():
        if setting is None:
            raise UserError(
                f"{path}: rewards.{name}: null takes nothing out here, since the rewards of a file "
                f"stand in place of those of {parent}: name all that are wanted, or give "
                f"rewards.{name}=null on the command line"
            )
    return merge(base, tree)


def merge(base: dict[str, Any], over: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`over` upon `base`, group by group; what is in `REPLACED` is not mixed."""
    merged = dict(base)
    for key, value in over.items():
        known = merged.get(key)
        if isinstance(value, dict) and isinstance(known, dict) and prefix + key not in REPLACED:
            merged[key] = merge(known, value, f"{prefix}{key}.")
        else:
            merged[key] = value
    return merged


def dump_config(config: Config) -> str:
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
