"""The teacher of `rarl data explain --teacher self`: a run, or a model with or without an adapter,
on engines that come up and end with the command."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rarl.collect import Collector
from rarl.commands.resolve import resolve
from rarl.commands.session import open_session
from rarl.commands.targets import Target, read_model
from rarl.config import Config, config_from, load_config
from rarl.data.stream import load_processor
from rarl.display import Display
from rarl.files import file_hash
from rarl.grpo.policy import read_adapter
from rarl.prompts import evaluation_prompts
from rarl.rationales.own import OwnTeacher
from rarl.rationales.teacher import SaidCache
from rarl.system.models import find_adapter
from rarl.training.run_dir import RunDir

DATA = "explained"  # what the data set is called
THINKING = "reason"  # the family that asks, where the run's own asks for no thinking


@contextmanager
def open_own_teacher(
    model: str, data: Path, folder: Path, cache: SaidCache, display: Display
) -> Iterator[OwnTeacher]:
    """Inside, engines with the model are up; `folder` has their logs. Raises UserError."""
    asked = read_own(model, data, folder)
    config, adapter = thinking(asked.config), asked.adapter
    setup = resolve(config, config)
    family = config.prompts.eval
    with open_session(setup, display, setup.eval_data, families=[family]) as live:
        assert live.pool is not None, "a teacher asks for engines"
        weights = [file_hash(one) for one in sorted(Path(setup.model_path).glob("*.safetensors"))]
        if adapter is not None:
            live.pool.publish(0, *read_adapter(adapter))
            weights.append(file_hash(adapter / "adapter_model.safetensors"))
        rollout = config.rollout
        yield OwnTeacher(
            weights=(hashlib.sha256("".join(weights).encode()).hexdigest(),),
            name=model,
            collector=Collector.unscored(live.pool, setup.model_path, rollout.max_model_length),
            processor=load_processor(setup.model_path),
            plan=evaluation_prompts(config.prompts),
            cache=cache,
            max_tokens=config.evaluation.max_completion_tokens or rollout.max_completion_tokens,
            max_pixels=config.data.max_pixels,
            adapter=adapter is not None,
        )


def read_own(model: str, data: Path, folder: Path) -> Target:
    """Returns how a run or a model is to be asked: a run as it measures. Raises UserError."""
    held = Path(model) / "config.yaml"
    sets = {DATA: str(data.resolve())}
    if not held.is_file():
        return read_model(model, sets, [], folder)
    own, adapter = load_config(held), find_adapter(model)
    templates = RunDir(Path(model)).templates
    tree: dict[str, Any] = own.model_dump() | {
        "run_dir": str(folder),
        "method": "grpo",
        "data": {"train": None, "eval": sets, "max_pixels": own.data.max_pixels},
        "evaluation": {"max_completion_tokens": own.evaluation.max_completion_tokens},
        "prompts": {
            "eval": own.prompts.eval,
            "templates": str(templates.resolve()) if templates.is_file() else None,
        },
    }
    tree["model"]["adapter"] = None
    for name in ("rewards", "judge"):
        del tree[name]
    config = config_from(tree, [], held)
    return Target(config, config, adapter)


def thinking(config: Config) -> Config:
    """Returns the configuration with a prompt that asks for thinking."""
    plan = evaluation_prompts(config.prompts)
    if plan.families[config.prompts.eval].form != "answer":
        return config
    prompts = config.prompts.model_copy(update={"eval": THINKING})
    return config.model_copy(update={"prompts": prompts})
