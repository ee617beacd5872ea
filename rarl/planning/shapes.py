"""The sizes that a plan is made from: of the model, and of the work in one step."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rarl.config import Config
from rarl.errors import UserError

# Shapes of the model that the recipes name, so that a plan needs no download.
QWEN2_VL_2B: dict[str, Any] = {
    "text_config": {
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 1536,
        "num_heads": 16,
        "mlp_ratio": 4,
    },
    "tie_word_embeddings": True,
}
KNOWN_MODELS = {"Qwen/Qwen2-VL-2B-Instruct": QWEN2_VL_2B}
IMAGE_TOKEN_PIXELS = 28 * 28  # of Qwen2-VL: 2 x 2 patches of 14 x 14
TEXT_TOKENS = 100  # of a prompt, without its image: instructions and question; an assumption
MEAN_LENGTH = 0.5  # of max_completion_tokens: what the demo has; an assumption elsewhere


@dataclass(frozen=True)
class ModelSize:
    """Numbers of parameters. `text` is the language model with its tied embedding."""

    total: int
    text: int
    adapter: int
    layers: int
    hidden: int
    key_value_width: int  # of keys, or of values, of one token in one layer

    def cache_bytes(self, value_bytes: int) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.key_value_width * value_bytes


@dataclass(frozen=True)
class Work:
    """One step. Lengths in tokens; `completion` is the mean, `longest` the bound."""

    prompts: int
    group: int
    prompt: int
    image: int
    completion: int
    longest: int
    epochs: int = 1
    reference: bool = False  # a pass without gradient for the KL to the base model
    checkpointing: bool = False

    @property
    def replies(self) -> int:
        return self.prompts * self.group


def model_shapes(path: str) -> Any:
    """The configuration of a model folder or of a model whose shapes are known here."""
    from transformers import AutoConfig, Qwen2VLConfig

    if not Path(path).is_dir() and path in KNOWN_MODELS:
        return Qwen2VLConfig(**KNOWN_MODELS[path])
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.path={path}: no model configuration there ({str(error).splitlines()[0]})"
        ) from None


def model_size(model: Any, rank: int) -> ModelSize:
    """All weights, and those of an adapter of this rank on the language model's linear layers."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        empty = AutoModelForImageTextToText.from_config(model)
    linear = [
        module
        for name, module in empty.named_modules()
        if isinstance(module, torch.nn.Linear) and "language_model" in name
    ]
    text = model.text_config
    return ModelSize(
        total=sum(p.numel() for p in empty.parameters()),
        text=sum(p.numel() for name, p in empty.named_parameters() if "visual" not in name),
        adapter=sum(rank * (module.in_features + module.out_features) for module in linear),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        key_value_width=text.hidden_size * text.num_key_value_heads // text.num_attention_heads,
    )


def step_work(config: Config, model_path: str) -> Work:
    """Of a step of this configuration. What the data decides (lengths of prompts and replies) is
    assumed."""
    rollout, train = config.rollout, config.train
    room = max(1, rollout.max_model_length - rollout.max_completion_tokens)
    pixels = config.data.max_pixels or processor_pixels(model_path)
    image = min(room, pixels // IMAGE_TOKEN_PIXELS) if pixels else max(0, room - TEXT_TOKENS)
    return Work(
        prompts=train.prompts_per_step,
        group=rollout.group_size,
        prompt=min(room, image + TEXT_TOKENS),
        image=image,
        completion=max(1, round(MEAN_LENGTH * rollout.max_completion_tokens)),
        longest=rollout.max_completion_tokens,
        epochs=config.grpo.epochs,
        reference=config.grpo.kl_beta > 0,
        checkpointing=train.gradient_checkpointing,
    )


def processor_pixels(model_path: str) -> int | None:
    """The largest picture that the model's own processor makes, where its folder is at hand and
    says so."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = Path(model_path) / name
        if not path.is_file():
            continue
        held = json.loads(path.read_text(encoding="utf-8"))
        held = held.get("image_processor", held)
        found = held.get("max_pixels") or (held.get("size") or {}).get("longest_edge")
        if found:
            return int(found)
    return None
