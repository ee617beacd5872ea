"""How much GPU memory a configuration needs: weights twice, adapter, activations, and vLLM's share.

Estimates from the model's shapes, not measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rarl.config import Config
from rarl.errors import UserError

GIB = 1024**3
HEAD_CHUNK_GIB = 0.25  # `head.chunk_bytes` of a GPU
CONTEXT_GIB = 0.6  # of CUDA context and kernels per process
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
    "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4},
    "tie_word_embeddings": True,
}
KNOWN_MODELS = {"Qwen/Qwen2-VL-2B-Instruct": QWEN2_VL_2B}


@dataclass(frozen=True)
class MemoryPlan:
    """GiB by part. `trainer` parts must fit beside vLLM's share, `sampler` parts inside it."""

    trainer: dict[str, float]
    sampler: dict[str, float]
    sampler_share: float
    card: float

    def shortfalls(self) -> list[str]:
        problems = []
        left = self.card - self.sampler_share
        need = sum(self.trainer.values())
        if need > left:
            problems.append(
                f"the trainer needs {need:.1f} GiB but has {left:.1f}: lower train.micro_batch_tokens or "
                "rollout.gpu_memory_share, or set train.gradient_checkpointing"
            )
        if self.sampler["cache for keys and values"] <= 0:
            problems.append(
                f"vLLM's share of {self.sampler_share:.1f} GiB leaves no cache for keys and values: raise "
                "rollout.gpu_memory_share"
            )
        return problems


def plan_memory(config: Config, model: Any, card_gib: float) -> MemoryPlan:
    """Estimates for a transformers model configuration on a card of `card_gib` GiB."""
    text = model.text_config
    parameters, adapter = count_parameters(model, config.model.lora.rank)
    weights = 2 * parameters / GIB  # bfloat16
    tokens = config.train.micro_batch_tokens
    # What `grpo/shared_prefix.py` keeps of a token in a layer for the backward pass: about six hidden-sized tensors,
    # queries, keys and values before and after rotation, and two MLP-sized ones; bfloat16.
    heads = 2 * text.hidden_size + 4 * text.hidden_size * text.num_key_value_heads // text.num_attention_heads
    per_layer = 2 * (6 * text.hidden_size + heads + 2 * text.intermediate_size)
    layers = 2 if config.train.gradient_checkpointing else text.num_hidden_layers
    kept = tokens * (layers * per_layer + 2 * text.num_hidden_layers * text.hidden_size)
    share = config.rollout.gpu_memory_share * card_gib
    trainer = {
        "base weights": weights,
        "adapter, gradient, optimizer": 16 * adapter / GIB,  # float32: weight, gradient, two moments
        "activations": kept / GIB,
        "log-probs over the vocabulary": 2 * HEAD_CHUNK_GIB,
        "context": CONTEXT_GIB,
    }
    working = 0.05 * card_gib  # vLLM's own activations while it profiles
    cache = share - weights - working - CONTEXT_GIB
    sampler = {"base weights": weights, "working memory": working, "context": CONTEXT_GIB}
    return MemoryPlan(trainer, sampler | {"cache for keys and values": cache}, share, card_gib)


def count_parameters(model: Any, rank: int) -> tuple[int, int]:
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
    adapter = sum(rank * (module.in_features + module.out_features) for module in linear)
    return sum(p.numel() for p in empty.parameters()), adapter


def model_shapes(path: str) -> Any:
    """The configuration of a model folder or of a model whose shapes are known here."""
    from transformers import AutoConfig, Qwen2VLConfig

    if not Path(path).is_dir() and path in KNOWN_MODELS:
        return Qwen2VLConfig(**KNOWN_MODELS[path])
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"model.path={path}: no model configuration there ({str(error).splitlines()[0]})") from None


def require_memory(config: Config, model_path: str) -> None:
    """Raises UserError when the plan does not fit the GPU of this machine."""
    import torch

    card = torch.cuda.get_device_properties(0).total_memory / GIB
    problems = plan_memory(config, model_shapes(model_path), card).shortfalls()
    if problems:
        raise UserError(f"the GPU has {card:.0f} GiB, and {problems[0]}")
