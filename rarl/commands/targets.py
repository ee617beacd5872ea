"""What `rarl eval` is given, as a configuration: a run, a file or a model; data sets; a judge."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from rarl.config import IMPORT_PATH, Config, JudgeConfig, config_from, load_config
from rarl.errors import UserError
from rarl.paths import anchored
from rarl.system.models import find_adapter


@dataclass(frozen=True)
class Target:
    """What is to be measured. `made_with` is the configuration of the run; `config` is the same
    with what is asked otherwise. `adapter` is one that no run directory holds."""

    config: Config
    made_with: Config
    adapter: Path | None


def read_target(target: str, rest: list[str], judge: str, out: Path | None) -> Target:
    """Returns what the arguments of `rarl eval` ask for. `rest` holds data sets and `key=value`
    overrides. Raises UserError."""
    overrides = [one for one in rest if "=" in one] + judge_overrides(judge)
    data_sets = name_data_sets([one for one in rest if "=" not in one])
    if data_sets:
        overrides.insert(0, f"data.eval={json.dumps(data_sets)}")
    folder = Path(target)
    held, own = folder / "config.yaml", [f"run_dir={target}"]
    if held.is_file():
        return Target(load_config(held, [*overrides, *own]), load_config(held, own), None)
    if target.endswith((".yaml", ".yml")):
        config = load_config(target, [*overrides, *([f"run_dir={out}"] if out else [])])
        return Target(config, config, None)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(
            f"{target}: holds neither config.yaml (a run directory) nor config.json (a model)"
        )
    return read_model(target, data_sets, overrides, out)


def read_model(
    target: str, data_sets: dict[str, str], overrides: list[str], out: Path | None
) -> Target:
    """Returns the same for MODEL or MODEL+ADAPTER, with defaults for all else."""
    model, _, adapter_path = target.partition("+")
    here = bool(IMPORT_PATH.match(model)) or Path(model).expanduser().is_dir()
    owner, _, name = model.partition("/")
    # What else is no name of a model on the Hub, such as that of a run in a folder that is here.
    if not here and (not name or "/" in name or model[0] in "./~" or Path(owner).is_dir()):
        raise UserError(
            f"{target}: no such run directory, configuration or model (looked for "
            f"{Path(model).expanduser().absolute()}); `rarl train` makes a run directory"
        )
    if not data_sets:
        advice = f"as in `rarl eval {target} data/test.parquet`"
        known = "a model" if here else "no such run directory here; if it is a model on the Hub"
        raise UserError(f"{target}: {known}, name the data sets to measure it on, {advice}")
    parts = [Path(part).name for part in (model, adapter_path) if part]
    title = "-".join(re.sub(r"[^\w.]+", "-", part) for part in parts)
    lora: dict[str, int] = {}
    adapter = find_adapter(adapter_path) if adapter_path else None
    if adapter:
        held = json.loads((adapter / "adapter_config.json").read_text())
        lora = {"rank": held["r"], "alpha": held["lora_alpha"]}
    tree: dict[str, object] = {
        "run_dir": str(out or f"runs/eval-{title}"),
        "model": {"path": model, "adapter": str(adapter) if adapter else None, "lora": lora},
        "data": {"train": None},
        "prompts": {"eval": "reason"},
    }
    config = config_from(anchored(tree, Path.cwd()), overrides, target)
    return Target(config, config, adapter)


def read_judge(rest: list[str]) -> JudgeConfig:
    """Returns the judge of a configuration, or the rules, with `judge.…=…` overrides. Raises
    UserError."""
    files, overrides = [[one for one in rest if ("=" in one) == has] for has in (False, True)]
    if len(files) > 1:
        raise UserError(f"{files[1]}: one configuration at a time")
    if files:
        path = Path(files[0])
        return load_config(path / "config.yaml" if path.is_dir() else path, overrides).judge
    needless = [one for one in overrides if one.startswith(("judge.url=", "judge.model="))]
    if needless and not any(one.startswith("judge.backend=") for one in overrides):
        advice = "the rules ask nobody; add judge.backend=openai, serve or local"
        raise UserError(f"override '{needless[0]}': {advice}")
    # never read
    tree: dict[str, object] = {"run_dir": ".", "model": {"path": "."}, "data": {"train": None}}
    return config_from(tree, overrides, "the rules").judge


def name_data_sets(paths: list[str]) -> dict[str, str]:
    """Returns the paths by name: the file's, with the folder's if the file is called as a split,
    and with a number if two would be called the same."""
    names: dict[str, str] = {}
    for text in paths:
        path = Path(text)
        name = path.stem
        if IMPORT_PATH.match(text):
            name = text.split(":")[1].removeprefix("write_").replace("_", "-")
        elif name in ("train", "test", "validation", "val"):
            name = f"{path.parent.name}-{name}"
        number, unique = 2, name
        while unique in names:
            unique, number = f"{name}-{number}", number + 1
        names[unique] = text
    return names


def judge_overrides(judge: str) -> list[str]:
    """Returns the overrides for `rules`, for an OpenAI-compatible server's URL (ending in /v1), or
    for that of RARL's own Serve application."""
    if not judge:
        return []
    if judge == "rules":
        unseen = ["judge.image=false", "judge.rubric=checklist"]
        return ["judge.backend=rules", "judge.evaluate=true", *unseen]
    backend = "openai" if judge.rstrip("/").endswith("/v1") else "serve"
    return [f"judge.backend={backend}", f"judge.url={judge}", "judge.evaluate=true"]
