"""How much GPU memory a configuration needs: weights twice, adapter, activations, vLLM's share, a
judge beside them.

Estimates from the model's shapes, not measurements. Only the activations' formula is checked, on a
CPU (`bench/plan.py --activations`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

from rarl.config import Config
from rarl.errors import UserError
from rarl.planning.shapes import ModelSize, Work, model_shapes, model_size, step_work

GIB = 1024**3
HEAD_CHUNK_GIB = 0.25  # `head.chunk_bytes` of a GPU
CONTEXT_GIB = 0.6  # of CUDA context and kernels per process
WORKING_SHARE = 0.05  # of the card: vLLM's own activations while it profiles
# of the card: what configs/judge/qwen2_5_7b.yaml takes where it runs beside the training
JUDGE_SHARE = 0.25
MAX_SEQUENCES = 128  # that an engine samples at once, `SamplerSettings.max_sequences`
MICRO_BATCHES = (1024, 2048, 4096, 8192, 16384, 32768)
CACHE = "cache for keys and values"
ACTIVATIONS = "activations"


@dataclass(frozen=True)
class MemoryPlan:
    """GiB by part. `trainer` parts must fit beside vLLM's share and the judge's, `sampler` parts
    inside it.

    `wanted_cache` is what the keys and values of all sequences at once would take; `activation_gib`
    what a token of `train.micro_batch_tokens` does.
    """

    trainer: dict[str, float]
    sampler: dict[str, float]
    judge: float
    sampler_share: float
    card: float
    wanted_cache: float
    activation_gib: float

    @property
    def trainer_limit(self) -> float:
        return self.card - self.sampler_share - self.judge

    def shortfalls(self) -> list[str]:
        """What does not fit, and what to change; nothing where all fits."""
        problems = []
        need = sum(self.trainer.values())
        if need > self.trainer_limit:
            problems.append(
                f"the trainer needs {need:.1f} GiB but has {self.trainer_limit:.1f}: lower train.micro_batch_tokens or "
                "rollout.gpu_memory_share, or set train.gradient_checkpointing"
            )
        if self.sampler[CACHE] <= 0:
            problems.append(
                f"vLLM's share of {self.sampler_share:.1f} GiB leaves no cache for keys and values: raise "
                "rollout.gpu_memory_share"
            )
        return problems

    def shares(self) -> tuple[float, int] | None:
        """(rollout.gpu_memory_share, train.micro_batch_tokens) that use the card best: first a
        cache for all sequences at once, then the largest micro-batch beside it. None where even the
        smallest micro-batch leaves no cache."""
        fixed = sum(self.trainer.values()) - self.trainer[ACTIVATIONS]
        engine = sum(self.sampler.values()) - self.sampler[CACHE]
        smallest = fixed + MICRO_BATCHES[0] * self.activation_gib
        # in steps of 0.05
        most = math.floor(20 * (self.card - self.judge - smallest) / self.card) / 20
        wanted = math.ceil(20 * (engine + self.wanted_cache) / self.card) / 20
        share = min(most, wanted, 0.9)
        if share * self.card <= engine:
            return None
        left = self.card * (1 - share) - self.judge - fixed
        return share, max(
            n for n in MICRO_BATCHES if n == MICRO_BATCHES[0] or n * self.activation_gib <= left
        )


def plan_memory(config: Config, model: Any, card_gib: float, work: Work) -> MemoryPlan:
    """Estimates for a transformers model configuration on a card of `card_gib` GiB."""
    size = model_size(model, config.model.lora.rank)
    weights = 2 * size.total / GIB  # bfloat16
    per_token = activation_bytes(model, config.train.gradient_checkpointing, 2) / GIB
    share = config.rollout.gpu_memory_share * card_gib
    trainer = {
        "base weights": weights,
        "adapter, gradient, optimizer": adapter_bytes(size) / GIB,
        ACTIVATIONS: config.train.micro_batch_tokens * per_token,
        "log-probs over the vocabulary": 2 * HEAD_CHUNK_GIB,
        "context": CONTEXT_GIB,
    }
    working = WORKING_SHARE * card_gib
    sampler = {"base weights": weights, "working memory": working, "context": CONTEXT_GIB}
    cache = share - weights - working - CONTEXT_GIB
    return MemoryPlan(
        trainer=trainer,
        sampler=sampler | {CACHE: cache},
        judge=JUDGE_SHARE * card_gib if judge_is_here(config) else 0.0,
        sampler_share=share,
        card=card_gib,
        wanted_cache=wanted_cache_bytes(size, work, config.rollout.num_actors, 2) / GIB,
        activation_gib=per_token,
    )


def adapter_bytes(size: ModelSize) -> int:
    """Weight, gradient and the two moments of Adam, all float32."""
    return 16 * size.adapter


def activation_bytes(model: Any, checkpointing: bool, value_bytes: int) -> float:
    """Kept for the backward pass, for each token of a micro-batch.

    What `grpo/shared_prefix.py` keeps of a token in a layer: seven hidden-sized tensors, queries,
    keys and values before and after rotation, and three MLP-sized ones. These are the counts that
    fit the peaks of `bench/plan.py --activations`, so what the backward pass needs for a moment is
    in them. With checkpointing, two layers at a time and each layer's input.
    """
    text = model.text_config
    heads = (
        2 * text.hidden_size
        + 4 * text.hidden_size * text.num_key_value_heads // text.num_attention_heads
    )
    per_layer = value_bytes * (7 * text.hidden_size + heads + 3 * text.intermediate_size)
    layers = 2 if checkpointing else text.num_hidden_layers
    return layers * per_layer + value_bytes * text.num_hidden_layers * text.hidden_size


def wanted_cache_bytes(size: ModelSize, work: Work, samplers: int, value_bytes: int) -> float:
    """Keys and values of all the sequences that one engine samples at once, of full length; a
    prompt counts once."""
    sequences = min(MAX_SEQUENCES, math.ceil(work.prompts / samplers) * work.group)
    return size.cache_bytes(value_bytes) * (
        sequences * work.longest + math.ceil(sequences / work.group) * work.prompt
    )


def judge_is_here(config: Config) -> bool:
    """Whether a judge with a model is asked that runs on this machine, hence maybe on this card."""
    if config.judge.backend == "rules" or not ("judge" in config.rewards or config.judge.evaluate):
        return False
    url = str(config.judge.url)
    return url.startswith("app:") or urlparse(url).hostname in ("127.0.0.1", "localhost", "::1")


def require_memory(config: Config, model_path: str) -> None:
    """Raises UserError when the plan does not fit the GPU of this machine."""
    import torch

    card = torch.cuda.get_device_properties(0).total_memory / GIB
    problems = plan_memory(
        config, model_shapes(model_path), card, step_work(config, model_path)
    ).shortfalls()
    if problems:
        raise UserError(f"the GPU has {card:.0f} GiB, and {problems[0]}")
