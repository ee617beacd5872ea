"""How much memory a configuration needs: of a GPU by estimates from the model's shapes, of which
the activations' formula alone is checked (`bench/plan.py --activations`), or of all processes of a
run on CPU. Private pages (USS) count for each process, shared ones once: the sum is the PSS."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from rarl.config import IMPORT_PATH, Config
from rarl.errors import UserError
from rarl.planning.sizes import (
    FIGURES,
    KNOWN_MODELS,
    PATCH_VALUES,
    ModelSize,
    Work,
    model_shapes,
    model_size,
    step_work,
)
from rarl.system.imports import import_object

GIB, MIB = 1024**3, 1024**2
HEAD_CHUNK_GIB = 0.25  # `head.chunk_bytes` of a GPU
HEAD_CHUNK_MIB = 8  # of a CPU
CONTEXT_GIB = 0.6  # of CUDA context and kernels per process
WORKING_SHARE = 0.05  # of the card: vLLM's own activations while it profiles
# of the card: what configs/judge/qwen2_5_7b.yaml takes where it runs beside the training
JUDGE_SHARE = 0.25
JUDGE = "judge's own engine"
MAX_SEQUENCES = 128  # that an engine samples at once, `SamplerSettings.max_sequences`
MICRO_BATCHES = (1024, 2048, 4096, 8192, 16384, 32768)
CACHE = "cache for keys and values"
ACTIVATIONS = "activations"
LIBRARIES: dict[str, int] = FIGURES["libraries"]
# copies of a batch of questions that the driver's heap has room for: unpacked, as requests, and not
# given back
HELD = 8


@dataclass(frozen=True)
class Card:
    """`memory` in GiB as PyTorch sees it, `tflops` dense bfloat16, `bandwidth` in GB/s."""

    name: str
    memory: float
    tflops: float
    bandwidth: float


DEFAULT_CARD = "a100-40g"
CARDS = {name: Card(name, **figures) for name, figures in FIGURES["cards"].items()}


def find_card(name: str, memory: float | None = None) -> Card:
    """Returns a card by name, with `memory` GiB where a part of it is meant. Raises UserError for
    one that is not listed."""
    if name not in CARDS:
        known = ", ".join(CARDS)
        raise UserError(f"--gpu {name}: not a card that is known here; choose one of {known}")
    card = CARDS[name]
    if memory is not None and memory <= 0:
        raise UserError(f"--gpu-gib {memory:g}: a card has more than 0 GiB")
    return replace(card, memory=memory or card.memory)


@dataclass(frozen=True)
class MemoryPlan:
    """GiB by part. `trainer` parts must fit beside vLLM's share and the judge's, `sampler` parts
    inside it. `judge` is the judge's share of this card, and `own_judge` the parts of a judge that
    comes with the run, which must fit `judge_room`, there or on a card of its own; no parts where
    its model is not at hand. `wanted_cache` is what the keys and values of all sequences at once
    would take, `activation_gib` what a token of `train.micro_batch_tokens` does."""

    trainer: dict[str, float]
    sampler: dict[str, float]
    judge: float
    own_judge: dict[str, float]
    judge_room: float
    sampler_share: float
    card: float
    wanted_cache: float
    activation_gib: float

    @property
    def trainer_limit(self) -> float:
        return self.card - self.sampler_share - self.judge

    def shortfalls(self) -> list[str]:
        """Returns what does not fit, and what to change; nothing where all fits."""
        problems, need = [], sum(self.trainer.values())
        if need > self.trainer_limit:
            problems.append(
                f"the trainer needs {need:.1f} GiB but has {self.trainer_limit:.1f}: lower "
                "train.micro_batch_tokens or rollout.gpu_memory_share, or set "
                "train.gradient_checkpointing"
            )
        if self.sampler[CACHE] <= 0:
            problems.append(
                f"vLLM's share of {self.sampler_share:.1f} GiB leaves no {CACHE}: raise "
                "rollout.gpu_memory_share"
            )
        if self.own_judge and self.own_judge[CACHE] <= 0:
            problems.append(
                f"the judge's share of {self.judge_room:.1f} GiB leaves no {CACHE}: raise "
                "judge.gpu_memory_share, or take a smaller judge.model"
            )
        return problems

    def shares(self) -> tuple[float, int] | None:
        """Returns (rollout.gpu_memory_share, train.micro_batch_tokens) that use the card best:
        first a cache for all sequences at once, then the largest micro-batch beside it. None where
        even the smallest micro-batch leaves no cache."""
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
        fitting = [tokens for tokens in MICRO_BATCHES if tokens * self.activation_gib <= left]
        return share, max(fitting, default=MICRO_BATCHES[0])


def plan_memory(config: Config, model: Any, card_gib: float, work: Work) -> MemoryPlan:
    """Returns estimates for a transformers model configuration on a card of `card_gib` GiB."""
    size = model_size(model, config.model.lora.rank)
    weights = 2 * size.total / GIB  # bfloat16
    per_token = activation_bytes(model, config.train.gradient_checkpointing, 2) / GIB
    share, working = config.rollout.gpu_memory_share * card_gib, WORKING_SHARE * card_gib
    sampler = {"base weights": weights, "working memory": working, "context": CONTEXT_GIB}
    # keys and values of all sequences that one engine samples at once; a prompt counts once
    prompts = math.ceil(work.prompts / config.rollout.num_actors)
    sequences = min(MAX_SEQUENCES, prompts * work.group)
    tokens = sequences * work.longest + math.ceil(sequences / work.group) * work.prompt
    local = config.asks_local_judge()
    room = config.judge.gpu_memory_share * card_gib if local else 0.0
    beside = JUDGE_SHARE * card_gib if judge_is_here(config) else 0.0
    judge_parts: dict[str, float] = {}
    if local and (held := judge_weights(config, 2)) is not None:
        judge_parts = {"weights": held / GIB, "working memory": working, "context": CONTEXT_GIB}
        judge_parts |= {CACHE: room - sum(judge_parts.values())}
    return MemoryPlan(
        trainer={
            "base weights": weights,
            "adapter, gradient, optimizer": adapter_bytes(size) / GIB,
            ACTIVATIONS: config.train.micro_batch_tokens * per_token,
            "log-probs over the vocabulary": 2 * HEAD_CHUNK_GIB,
            "context": CONTEXT_GIB,
        },
        sampler=sampler | {CACHE: share - sum(sampler.values())},
        judge=0.0 if local and config.judge.own_gpu else room or beside,
        own_judge=judge_parts,
        judge_room=room,
        sampler_share=share,
        card=card_gib,
        wanted_cache=size.cache_bytes(2) * tokens / GIB,
        activation_gib=per_token,
    )


def adapter_bytes(size: ModelSize) -> int:
    """Returns the bytes of weight, gradient and the two moments of Adam, all float32."""
    return 16 * size.adapter


def activation_bytes(model: Any, checkpointing: bool, value_bytes: int) -> float:
    """Returns what the shared-prefix pass keeps of each token for the backward pass.

    In a layer: seven hidden-sized tensors, queries, keys and values before and after rotation, and
    three MLP-sized ones, which fit the peaks of `bench/plan.py --activations`. With checkpointing:
    two layers at a time and each layer's input.
    """
    text = model.text_config
    hidden = text.hidden_size
    heads = 2 * hidden + 4 * hidden * text.num_key_value_heads // text.num_attention_heads
    per_layer = value_bytes * (7 * hidden + heads + 3 * text.intermediate_size)
    layers = 2 if checkpointing else text.num_hidden_layers
    return layers * per_layer + value_bytes * text.num_hidden_layers * hidden


def judge_is_here(config: Config) -> bool:
    """Returns whether a judge with a model is asked that is served on this machine, hence maybe on
    this card."""
    if config.judge.backend not in ("openai", "serve") or not config.asks_judge():
        return False
    url = str(config.judge.url)
    return url.startswith("app:") or urlparse(url).hostname in ("127.0.0.1", "localhost", "::1")


def judge_weights(config: Config, value_bytes: int) -> float | None:
    """Returns the bytes of the local judge's weights: of its files where it is a folder, which may
    be quantised; else of its parameters, `value_bytes` each; None where neither is known."""
    model = str(config.judge.model)
    path = str(import_object(model)()) if IMPORT_PATH.match(model) else model
    if files := sum(file.stat().st_size for file in Path(path).glob("*.safetensors")):
        return float(files)
    if path in KNOWN_MODELS:
        return float(value_bytes * model_size(model_shapes(path), rank=1).total)
    return None


def require_memory(config: Config, model_path: str) -> None:
    """Raises UserError when the plan does not fit the GPU of this machine."""
    import torch

    card = torch.cuda.get_device_properties(0).total_memory / GIB
    work = step_work(config, model_path)
    problems = plan_memory(config, model_shapes(model_path), card, work).shortfalls()
    if problems:
        raise UserError(f"the GPU has {card:.0f} GiB, and {problems[0]}")


@dataclass(frozen=True)
class ProcessMemory:
    """MiB of one of `count` processes of a kind: what its libraries take, and what the
    configuration adds."""

    count: int
    libraries: float
    added: dict[str, float]

    @property
    def total(self) -> float:
        return self.count * (self.libraries + sum(self.added.values()))


def plan_processes(
    config: Config, model: Any, work: Work, value_bytes: int = 4
) -> dict[str, ProcessMemory]:
    """Returns MiB by kind of process, for a run on CPU with weights of `value_bytes` bytes each."""
    from rarl.system.placement import REQUESTS_PER_ACTOR  # with Ray, which takes a second

    size = model_size(model, config.model.lora.rank)
    weights = value_bytes * size.total / MIB
    groups = math.ceil(work.prompts / config.train.num_workers)
    tokens = groups * (work.prompt + work.group * work.completion)  # a prompt counted once
    tokens = min(config.train.micro_batch_tokens, tokens)
    activations = activation_bytes(model, config.train.gradient_checkpointing, value_bytes)
    asked = REQUESTS_PER_ACTOR * config.rollout.num_actors
    questions = min(config.evaluation.max_examples or asked, asked) if config.data.eval else 0
    # pictures as float32 patches
    questions_bytes = HELD * questions * work.patches * PATCH_VALUES * 4
    trainer = {
        "weights": weights,
        "adapter, gradient, optimizer": adapter_bytes(size) / MIB,
        ACTIVATIONS: tokens * activations / MIB,
        "log-probs over the vocabulary": 2 * HEAD_CHUNK_MIB,
    }
    sampler = {"weights": weights, CACHE: config.rollout.kv_cache_mib}
    # those of the streams, which have checked the data
    readers = max(1, (os.cpu_count() or 1) // 2)
    special: dict[str, tuple[int, dict[str, float]]] = {
        "driver": (1, {"questions being measured": questions_bytes / MIB}),
        "data worker": (readers, {}),
        "train worker": (config.train.num_workers, trainer),
        "sampler": (config.rollout.num_actors, sampler),
    }
    plan = {}
    for kind, libraries in LIBRARIES.items():
        count, added = special.get(kind, (1, {}))
        plan[kind] = ProcessMemory(count, libraries, added)
    if config.asks_local_judge():
        judge = {CACHE: float(config.rollout.kv_cache_mib)}
        if (held := judge_weights(config, 4)) is not None:
            judge["weights"] = held / MIB
        plan[JUDGE] = ProcessMemory(1, LIBRARIES["sampler"], judge)
    return plan
