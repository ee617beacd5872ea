"""Where a model and an adapter are: folders, Hub ids, or functions that make them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from rarl.config import IMPORT_PATH, LoraConfig
from rarl.errors import UserError
from rarl.system.imports import import_object

# Those whose processor gives `image_grid_thw`, which the data streams and the update need.
MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
# What adapters are on: see TARGETS in rarl/grpo/policy.py.
LINEAR_KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ON_A = ".lora_A.weight"


def resolve_model(path: str, key: str = "model.path") -> str:
    """Returns a local folder with the model that `key` names. Hub ids are looked up in the local
    cache, then downloaded. Raises UserError if it cannot be had."""
    if IMPORT_PATH.match(path):
        return str(import_object(path)())
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{key}={path}: the folder holds no config.json, so it is not a model")
        return str(folder.resolve())
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise UserError(
            f"{key}={path}: no such folder, looked for as {folder.absolute()}, and not a Hub "
            "id of the form owner/name"
        )
    return download_model(path, key)


def require_known_model(path: str, folder: str) -> None:
    """Raises UserError if the model in `folder`, which `path` names, is not of the Qwen-VL kind:
    a data worker would meet it first, as a KeyError."""
    try:
        held = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        kind = held.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"model.path={path}: its config.json cannot be read: {error}") from None
    if kind not in MODEL_TYPES:
        raise UserError(
            f"model.path={path}: its model_type is {kind}, and RARL works with models whose "
            f"processor gives image_grid_thw, which are {', '.join(MODEL_TYPES)}; choose one of "
            "these"
        )


def model_sees(folder: str) -> bool:
    """Whether transformers knows the model in a folder as one that reads images."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    kind = AutoConfig.from_pretrained(folder).model_type
    return kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def find_adapter(path: str, named: str | None = None) -> Path:
    """Returns the PEFT folder of a run directory, or the folder itself. Raises UserError, which
    calls the path `named`, if there is none."""
    folder = Path(path).expanduser().resolve()
    for one in (folder / "adapter", folder):
        if (one / "adapter_model.safetensors").is_file():
            return one
    raise UserError(
        f"{named or f'model.adapter={path}'}: neither a finished run directory nor a folder with a "
        "PEFT adapter"
    )


def resolve_adapter(path: str, lora: LoraConfig) -> Path:
    """Returns what `find_adapter` does. Raises UserError also if the adapter is of another shape:
    PEFT would load what fits and say nothing."""
    folder = find_adapter(path)
    held = json.loads((folder / "adapter_config.json").read_text())
    for key, wanted in (("r", lora.rank), ("lora_alpha", lora.alpha)):
        if held.get(key) != wanted:
            name = {"r": "rank", "lora_alpha": "alpha"}[key]
            raise UserError(
                f"model.adapter={path}: its {name} is {held.get(key)}; set model.lora.{name} to it"
            )
    return folder


def require_fitting_adapter(path: str, adapter: Path, model: str) -> None:
    """Raises UserError if the adapter in the folder `adapter`, which `path` names, is not on the
    seven linear kinds of every layer of the language model in the folder `model`, or is of another
    width. It reads names and shapes alone."""
    from safetensors import safe_open

    held = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    text = held.get("text_config") or held
    layers, width = text.get("num_hidden_layers"), text.get("hidden_size")
    with safe_open(adapter / "adapter_model.safetensors", "numpy") as file:
        names = [name for name in file.keys() if name.endswith(ON_A)]  # noqa: SIM118
        kinds = Counter(name.removesuffix(ON_A).rpartition(".")[2] for name in names)
        query = next((name for name in names if "q_proj" in name), None)
        its = file.get_slice(query).get_shape()[1] if query else None
    odd = next((name for name in names if "language_model" not in name), None)
    if odd or kinds.keys() != set(LINEAR_KINDS) or len(set(kinds.values())) > 1:
        found = odd or ", ".join(sorted(kinds)) or "no layer"
        raise UserError(
            f"model.adapter={path}: it is on {found}, and RARL's adapters are on "
            f"{', '.join(LINEAR_KINDS)} of every language layer; start from one of RARL's"
        )
    if None not in (layers, width) and (kinds["q_proj"], its) != (layers, width):
        raise UserError(
            f"model.adapter={path}: it is of another base than model.path, which has {layers} "
            f"layers of width {width}, and it has {kinds['q_proj']} of width {its}"
        )


def download_model(hub_id: str, key: str = "model.path") -> str:
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(hub_id, local_files_only=True)
    # absent or incomplete in the cache, in whatever way: the download below says what is wrong
    except Exception:
        pass
    try:
        return snapshot_download(hub_id)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{key}={hub_id}: not in the local cache, and it could not be downloaded "
            f"({reason}); copy the model to a folder and set {key} to it"
        ) from None
