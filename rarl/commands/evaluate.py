"""What `rarl eval` is asked to measure: a run, a configuration, or any model with or without an
adapter."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from rarl.commands.resolve import find_adapter
from rarl.config import IMPORT_PATH, Config, JudgeConfig, apply_override, describe, load_config
from rarl.data.controls import Control
from rarl.errors import UserError
from rarl.evaluation.measurements import Way


@dataclass(frozen=True)
class Asked:
    """`made_with` is the configuration of the run; `config` the same with what is asked otherwise.
    `adapter` is one that no run directory holds."""

    config: Config
    made_with: Config
    adapter: Path | None


def read_target(target: str, rest: list[str], judge: str, out: Path | None) -> Asked:
    """`rest` holds data sets and `key=value` overrides. Raises UserError."""
    overrides = [one for one in rest if "=" in one] + judge_overrides(judge)
    data_sets = name_data_sets([one for one in rest if "=" not in one])
    if data_sets:
        overrides.insert(0, f"data.eval={json.dumps(data_sets)}")
    folder = Path(target)
    if (folder / "config.yaml").is_file():
        made_with = load_config(folder / "config.yaml", [f"run_dir={target}"])
        return Asked(
            load_config(folder / "config.yaml", [*overrides, f"run_dir={target}"]), made_with, None
        )
    if target.endswith((".yaml", ".yml")):
        own = [f"run_dir={out}"] if out else []
        config = load_config(target, [*overrides, *own])
        return Asked(config, config, None)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(
            f"{target}: holds neither config.yaml (a run directory) nor config.json (a model)"
        )
    return read_model(target, data_sets, overrides, out)


def read_model(
    target: str, data_sets: dict[str, str], overrides: list[str], out: Path | None
) -> Asked:
    """MODEL or MODEL+ADAPTER, with defaults for all else."""
    model, _, adapter_path = target.partition("+")
    if not data_sets:
        raise UserError(
            f"{target}: name the data sets to measure it on, as in `rarl eval {target} data/test.parquet`"
        )
    name = "-".join(
        re.sub(r"[^\w.]+", "-", Path(part).name) for part in (model, adapter_path) if part
    )
    lora: dict[str, int] = {}
    adapter = None
    if adapter_path:
        adapter = find_adapter(adapter_path)
        held = json.loads((adapter / "adapter_config.json").read_text())
        lora = {"rank": held["r"], "alpha": held["lora_alpha"]}
    tree: dict[str, object] = {
        "run_dir": str(out or f"runs/eval-{name}"),
        "model": {"path": model, "adapter": str(adapter) if adapter else None, "lora": lora},
        "data": {"train": next(iter(data_sets.values()))},  # never read
        "prompts": {"eval": "reason"},
    }
    config = validated(tree, overrides)
    return Asked(config, config, adapter)


def read_judge(rest: list[str]) -> JudgeConfig:
    """The judge of a configuration, or the rules, with `judge.…=…` overrides. Raises UserError."""
    files = [one for one in rest if "=" not in one]
    overrides = [one for one in rest if "=" in one]
    if len(files) > 1:
        raise UserError(f"{files[1]}: one configuration at a time")
    if files:
        return load_config(
            Path(files[0]) / "config.yaml" if Path(files[0]).is_dir() else files[0], overrides
        ).judge
    # never read
    tree: dict[str, object] = {"run_dir": ".", "model": {"path": "."}, "data": {"train": "."}}
    return validated(tree, overrides).judge


def validated(tree: dict[str, object], overrides: list[str]) -> Config:
    for override in overrides:
        apply_override(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(describe(error)) from None


def name_data_sets(paths: list[str]) -> dict[str, str]:
    """A name for each: the file's, with the folder's where the file is called as a split, and a
    number where two would be called the same."""
    names: dict[str, str] = {}
    for text in paths:
        if IMPORT_PATH.match(text):
            name = text.split(":")[1].removeprefix("write_").replace("_", "-")
        else:
            path = Path(text)
            is_split = path.stem in ("train", "test", "validation", "val")
            name = f"{path.parent.name}-{path.stem}" if is_split else path.stem
        number, unique = 2, name
        while unique in names:
            unique, number = f"{name}-{number}", number + 1
        names[unique] = text
    return names


def judge_overrides(judge: str) -> list[str]:
    """`rules`, an OpenAI-compatible server's URL (ending in /v1), or that of RARL's own Serve
    application."""
    if not judge:
        return []
    if judge == "rules":
        return ["judge.backend=rules", "judge.evaluate=true"]
    backend = "openai" if judge.rstrip("/").endswith("/v1") else "serve"
    return [f"judge.backend={backend}", f"judge.url={judge}", "judge.evaluate=true"]


def ways_to_measure(prompts: str, controls: str, samples: int, options: bool) -> list[Way]:
    """Every prompt with the image and with every control; the samples and the options once for each
    prompt."""
    families = [one.strip() for one in prompts.split(",")] if prompts else [None]
    wanted = [one.strip() for one in controls.split(",")] if controls else []
    for one in wanted:
        if one not in get_args(Control):
            raise UserError(f"--control {one}: unknown; known are {', '.join(get_args(Control))}")
    ways = [Way(prompt=family) for family in families]
    for family in families:
        ways += [
            Way(prompt=family, control=control)
            for control in get_args(Control)
            if control in wanted
        ]
        ways += [Way(prompt=family, samples=samples)] if samples > 1 else []
    if options:
        ways.append(Way(prompt="none", options=True))
    return ways
