"""Small randomly initialised Qwen-VL policies and groups for them, made from the library's own
model classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen2VLConfig, Qwen3VLConfig

from rarl.grpo.group import TokenGroup
from rarl.grpo.policy import TARGETS, adapter_parameters
from rarl.patches import PatchRule

VOCABULARY, IMAGE, START, END, VIDEO = 300, 290, 291, 292, 293
PATCH = 14
PATCH_RULE = PatchRule(PATCH, frames=2, merge=2, mean=(127.5,) * 3, std=(64.0,) * 3)
SPECIAL = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
}
VISION = {"depth": 2, "num_heads": 2, "patch_size": PATCH}


def random_policy(family: str = "qwen2_vl", layers: int = 3) -> PeftModel:
    """float32, adapter away from zero, so that every one of its gradients is."""
    torch.manual_seed(0)
    text = TEXT | {"num_hidden_layers": layers}
    config: Any
    if family == "qwen2_vl":
        vision: dict[str, Any] = VISION | {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
        config = Qwen2VLConfig(text_config=text, vision_config=vision, **SPECIAL)
    elif family == "qwen2_5_vl":
        vision = VISION | {
            "hidden_size": 32,
            "out_hidden_size": 64,
            "intermediate_size": 48,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        }
        config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **SPECIAL)
    else:
        vision = VISION | {
            "hidden_size": 32,
            "out_hidden_size": 64,
            "intermediate_size": 48,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        }
        config = Qwen3VLConfig(text_config=text, vision_config=vision, **SPECIAL)
    model = AutoModelForImageTextToText.from_config(config)
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM")
    policy = get_peft_model(model, adapter)
    for parameter in adapter_parameters(policy):
        torch.nn.init.normal_(parameter, std=0.1)
    return policy.train()


def random_group(
    rng: np.random.Generator,
    grids: Sequence[tuple[int, int]],
    text: tuple[int, int],
    lengths: Sequence[int],
    key: int = 0,
) -> TokenGroup:
    """A prompt of `text[0]` tokens, an image for each of `grids` in patches (even sides), `text[1]`
    tokens, and its completions."""
    prompt = rng.integers(3, 280, text[0]).tolist()
    for rows, columns in grids:
        prompt += [START, *[IMAGE] * (rows * columns // 4), END]
    prompt += rng.integers(3, 280, text[1]).tolist()
    pixels = [
        rng.integers(0, 256, (rows * PATCH, columns * PATCH, 3), dtype=np.uint8)
        for rows, columns in grids
    ]
    return TokenGroup(
        prompt_token_ids=np.array(prompt, dtype=np.int64),
        pixels=tuple(pixels),
        patch_rule=PATCH_RULE,
        completions=[rng.integers(3, 280, n).tolist() for n in lengths],
        key=key,
    )
