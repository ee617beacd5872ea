"""Models, prompts and lengths that the benchmarks share."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText, Qwen2VLConfig

import rarl
from rarl.grpo.group import TokenGroup
from rarl.grpo.policy import TARGETS, adapter_parameters, load_policy
from rarl.patches import PatchRule
from rarl.planning.sizes import QWEN2_VL_2B, GroupShape

BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # what Linux calls them, on x86 and on ARM
RANK = 8
PATCH_RULE = PatchRule(14, frames=2, merge=2, mean=(127.5,) * 3, std=(64.0,) * 3)


@dataclass(frozen=True)
class Case:
    """`prompt` tokens with image tokens, `completion` tokens each, `group` completions, `side` x
    `side` patches."""

    name: str
    model: str
    prompt: int
    completion: int
    group: int
    side: int

    @property
    def shape(self) -> GroupShape:
        return GroupShape(self.prompt, self.completion, self.group, self.side**2)


CASES = {
    "tiny": Case("tiny", "tiny", 60, 40, 8, 8),
    "short": Case("short", "middle", 400, 200, 8, 32),
    "medium": Case("medium", "middle", 800, 200, 8, 48),
    "long": Case("long", "middle", 1200, 128, 8, 64),
}

MIDDLE_TEXT = {
    "vocab_size": 8000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
}
MIDDLE_VISION = {"depth": 6, "embed_dim": 384, "num_heads": 6, "hidden_size": 512, "mlp_ratio": 4}


def make_policy(kind: str, device: str, vocabulary: int | None = None) -> PeftModel:
    """`tiny` ships with RARL; `middle`, and `2b` (in bfloat16), are random. The adapter is random
    too, so that no gradient is zero."""
    if kind == "tiny":
        # By its place: what makes its data wants more packages.
        base = Path(rarl.__file__).parent / "tiny" / "base"
        policy = load_policy(str(base), "float32", device, RANK, 2 * RANK, seed=0)
    else:
        torch.manual_seed(0)
        dtype = torch.bfloat16 if kind == "2b" else torch.float32
        with torch.device(device):
            # In its dtype from the beginning: at 2B another copy would be most of a card.
            model = AutoModelForImageTextToText.from_config(
                model_config(kind, vocabulary), dtype=dtype
            )
        adapter = LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, task_type="CAUSAL_LM"
        )
        policy = get_peft_model(model, adapter).train()
    for parameter in adapter_parameters(policy):
        torch.nn.init.normal_(parameter, std=0.02)
    return policy


def computes_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16, as far as it tells. Without them PyTorch
    multiplies its numbers one by one, and a step of a 2B model does not end in a quarter of an
    hour."""
    told = Path("/proc/cpuinfo")
    return not told.is_file() or bool(BFLOAT16 & set(told.read_text().split()))


def model_config(kind: str, vocabulary: int | None) -> Qwen2VLConfig:
    if kind == "2b":
        text = QWEN2_VL_2B["text_config"] | ({"vocab_size": vocabulary} if vocabulary else {})
        return Qwen2VLConfig(**QWEN2_VL_2B | {"text_config": text})
    special = {"image_token_id": 7990, "video_token_id": 7991, "vision_start_token_id": 7992}
    return Qwen2VLConfig(
        text_config=MIDDLE_TEXT,
        vision_config=MIDDLE_VISION,
        vision_end_token_id=7993,
        tie_word_embeddings=True,
        **special,
    )


def make_group(case: Case, config: Any, seed: int = 0) -> TokenGroup:
    """Random text around an image, and random completions, all of full length."""
    rng = np.random.default_rng(seed)
    ordinary = min(config.image_token_id, config.text_config.vocab_size) - 20
    image = case.side**2 // 4
    before = (case.prompt - image) // 2
    after = case.prompt - image - before
    ids = [
        *rng.integers(3, ordinary, before),
        *[config.image_token_id] * image,
        *rng.integers(3, ordinary, after),
    ]
    return TokenGroup(
        prompt_token_ids=np.array(ids, dtype=np.int64),
        pixels=(rng.integers(0, 256, (case.side * 14, case.side * 14, 3), dtype=np.uint8),),
        patch_rule=PATCH_RULE,
        completions=[
            rng.integers(3, ordinary, case.completion).tolist() for _ in range(case.group)
        ],
        key=0,
    )


def chance_reward(completions: Sequence[str], **columns: Any) -> list[float | None]:
    """1 or 0, by the bits of each text: of a random model's texts nothing else tells them apart."""
    return [float(zlib.crc32(text.encode()) & 1) for text in completions]
