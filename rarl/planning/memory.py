"""How much memory a configuration needs: of a GPU by estimates from the model's shapes, of which
the trainer's are checked (`bench/plan.py --activations`, `bench/meta_update.py`), or of all
processes of a run on CPU. Private pages (USS) count for each process, shared ones once: the sum is
the PSS."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from rarl.errors import UserError
from rarl.paths import IMPORT_PATH
from rarl.planning.sizes import (
    FIGURES,
    IMAGE_TOKEN_PIXELS,
    KNOWN_MODELS,
    PATCHES_PER_TOKEN,
    Work,
    activation_bytes,
    adapter_bytes,
    layer_bytes,
    model_shapes,
    model_size,
    step_work,
)
from rarl.rollout.engine import BATCHED_TOKENS
from rarl.system.gpu import gpus
from rarl.system.imports import import_object

if TYPE_CHECKING:
    from rarl.config import Config

GIB, MIB = 1024**3, 1024**2
HEAD_GIB = 3 * 0.25  # `kernels.chunk_bytes` of a GPU: logits, probabilities and their product
HEAD_CHUNK_MIB = 8  # of a CPU
CONTEXT_GIB = 0.6  # of CUDA context and kernels per process, beside what it is given; an assumption
GRAPHS_GIB = 0.5  # of the CUDA graphs that vLLM captures; an assumption
# of the card: what configs/judge/qwen2_5_7b.yaml takes where it runs beside the training
JUDGE_SHARE = 0.25
JUDGE = "judge's own engine"
MICRO_BATCHES = (1024, 2048, 4096, 8192, 16384, 32768)
CACHE = "cache for keys and values"
STARTING, GRAPHS = "activations at the start", "CUDA graphs"
ACTIVATIONS = "activations"
HEAD = "log-probs over the vocabulary"
LIBRARIES: dict[str, int] = FIGURES["libraries"]
# copies of a batch of questions that the driver has room for: as they were streamed, unpacked, as
# requests, and not given back
HELD = 4


@dataclass(frozen=True)
class GpuCard:
    """`memory` in GiB as PyTorch sees it, `tflops` dense bfloat16, `bandwidth` in GB/s."""

    name: str
    memory: float
    tflops: float
    bandwidth: float


DEFAULT_CARD = "a100-40g"
CARDS = {name: GpuCard(name, **figures) for name, figures in FIGURES["cards"].items()}


def find_card(name: str | None = None, memory: float | None = None) -> GpuCard:
    """Returns a card by name; without one this machine's, or a common one where there is none; with
    `memory` GiB where a part of it is meant. Raises UserError for one that is not listed."""
    if name is not None and name not in CARDS:
        known = ", ".join(CARDS)
        raise UserError(f"--gpu {name}: not a card that is known here; choose one of {known}")
    card = CARDS[name] if name else card_here() or CARDS[DEFAULT_CARD]
    if memory is not None and memory <= 0:
        raise UserError(f"--gpu-gib {memory:g}: a card has more than 0 GiB")
    return replace(card, memory=memory or card.memory)


def card_here() -> GpuCard | None:
    """Returns this machine's first card, as its driver describes it; None where there is none. One
    that is not listed has the rates of the listed card whose memory is nearest, and says so."""
    found = gpus()
    if not found:
        return None
    name = re.sub(r"[^a-z0-9]", " ", found[0].name.lower().replace("rtx ", "rtx")).split()
    same = [card for key, card in CARDS.items() if key.partition("-")[0] in name]
    near = min(same or CARDS.values(), key=lambda card: abs(card.memory - found[0].memory))
    called = near.name if same else f"{found[0].name}, with the rates of {near.name},"
    return replace(near, name=called, memory=found[0].memory)


@dataclass(frozen=True)
class MemoryPlan:
    """GiB by part. `trainer` parts must fit beside vLLM's share, the judge's and the `contexts` of
    all processes on the card, `sampler` parts inside vLLM's share. `judge` is the judge's share of
    this card, and `own_judge` the parts of a judge that comes with the run, which must fit
    `judge_room`, there or on a card of its own; no parts where its model is not at hand.
    `wanted_cache` is what the keys and values of all sequences at once would take, `activation_gib`
    what a token of `train.micro_batch_tokens` does."""

    trainer: dict[str, float]
    sampler: dict[str, float]
    judge: float
    own_judge: dict[str, float]
    judge_room: float
    contexts: float
    sampler_share: float
    card: float
    wanted_cache: float
    activation_gib: float

    @property
    def trainer_limit(self) -> float:
        return self.card - self.sampler_share - self.judge - self.contexts

    @property
    def needed(self) -> float:
        """Returns what a run takes of the card; a judge that is served has taken its share."""
        served = self.judge + CONTEXT_GIB if self.judge and not self.judge_room else 0.0
        return sum(self.trainer.values()) + self.card - self.trainer_limit - served

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
        fixed = sum(self.trainer.values()) - self.trainer[ACTIVATIONS] - self.trainer[HEAD]
        fixed += HEAD_GIB
        engine = sum(self.sampler.values()) - self.sampler[CACHE]
        smallest = fixed + MICRO_BATCHES[0] * self.activation_gib
        # in steps of 0.05
        room = self.card - self.judge - self.contexts
        most = math.floor(20 * (room - smallest) / self.card) / 20
        wanted = math.ceil(20 * (engine + self.wanted_cache) / self.card) / 20
        share = min(most, wanted, 0.9)
        if share * self.card <= engine:
            return None
        left = room - self.card * share - fixed
        fitting = [tokens for tokens in MICRO_BATCHES if tokens * self.activation_gib <= left]
        return share, max(fitting, default=MICRO_BATCHES[0])


def plan_memory(
    config: Config, model: Any, card_gib: float, work: Work, images: bool = True
) -> MemoryPlan:
    """Returns estimates for a transformers model configuration on a card of `card_gib` GiB. Without
    `images` in any question vLLM has no vision tower."""
    size = model_size(model, config.model.lora.rank)
    weights = 2 * size.total / GIB  # bfloat16
    checkpointing, rollout = config.train.gradient_checkpointing, config.rollout
    share = rollout.gpu_memory_share * card_gib
    tokens_at_once = max(BATCHED_TOKENS, rollout.max_model_length)
    sampler = {
        "base weights": weights if images else 2 * size.text / GIB,
        STARTING: engine_bytes(model, tokens_at_once, rollout.max_sequences, images) / GIB,
        GRAPHS: GRAPHS_GIB,
    }
    # keys and values of all sequences that one engine samples at once; a prompt counts once
    prompts = math.ceil(work.prompts / rollout.num_actors)
    sequences = min(work.sequences, prompts * work.group)
    tokens = sequences * work.longest + math.ceil(sequences / work.group) * work.prompt
    local = config.asks_local_judge()
    room = config.judge.gpu_memory_share * card_gib if local else 0.0
    judge = JUDGE_SHARE * card_gib if judge_is_here(config) else room
    if local and config.judge.own_gpu:
        judge = 0.0
    return MemoryPlan(
        trainer={
            "base weights": weights,
            "adapter, gradient, optimizer": adapter_bytes(size) / GIB,
            **update_parts(model, config.train.micro_batch_tokens, checkpointing),
        },
        sampler=sampler | {CACHE: share - sum(sampler.values())},
        judge=judge,
        own_judge=own_judge_parts(config, room) if local else {},
        judge_room=room,
        contexts=(3 if judge else 2) * CONTEXT_GIB,
        sampler_share=share,
        card=card_gib,
        wanted_cache=size.cache_bytes(2) * tokens / GIB,
        activation_gib=activation_bytes(model, checkpointing, 2) / GIB,
    )


def update_parts(model: Any, tokens: int, checkpointing: bool) -> dict[str, float]:
    """Returns the GiB that an update of so many tokens takes on a GPU, in bfloat16. With
    checkpointing the head comes before the second of the two layers that are there at a time."""
    later = tokens * layer_bytes(model, 2) / GIB if checkpointing else 0.0
    activations = tokens * activation_bytes(model, checkpointing, 2) / GIB
    return {ACTIVATIONS: activations, HEAD: max(0.0, HEAD_GIB - later)}


def engine_bytes(model: Any, tokens: int, sequences: int, images: bool = True) -> float:
    """Returns what vLLM's activations take when it tries, at its start, as many tokens and images
    as it will ever take at once: of an MLP three tensors of its inner width and a few of its outer
    one, in bfloat16, first of the vision tower, then of the language model; and the logits. The
    counts are an assumption."""
    text, of_images = model.get_text_config(), 0
    if images:
        vision = model.vision_config
        width = getattr(vision, "embed_dim", vision.hidden_size)
        inner = getattr(vision, "intermediate_size", None) or int(vision.mlp_ratio * width)
        # As many images as make these tokens, each of four patches.
        of_images = 2 * PATCHES_PER_TOKEN * tokens * (3 * inner + 2 * width)
    of_text = 2 * tokens * (3 * text.intermediate_size + 4 * text.hidden_size)
    return max(of_images, of_text) + 3 * 4 * sequences * text.vocab_size


def judge_is_here(config: Config) -> bool:
    """Returns whether a judge with a model is asked that is served on this machine, hence maybe on
    this card."""
    if config.judge.backend not in ("openai", "serve") or not config.asks_judge():
        return False
    url = str(config.judge.url)
    return url.startswith("app:") or urlparse(url).hostname in ("127.0.0.1", "localhost", "::1")


def own_judge_parts(config: Config, room: float) -> dict[str, float]:
    """Returns the GiB that the local judge's engine takes of its `room` on a GPU; nothing where its
    model is not at hand."""
    path = judge_path(config)
    if (held := judge_weights(path, 2)) is None:
        return {}
    started = engine_bytes(
        model_shapes(path, "judge.model"),
        BATCHED_TOKENS,
        config.judge.concurrency,
        config.judge.image,
    )
    parts = {"weights": held / GIB, STARTING: started / GIB, GRAPHS: GRAPHS_GIB}
    return parts | {CACHE: room - sum(parts.values())}


def judge_path(config: Config) -> str:
    model = str(config.judge.model)
    return str(import_object(model)()) if IMPORT_PATH.match(model) else model


def judge_weights(path: str, value_bytes: int) -> float | None:
    """Returns the bytes of the local judge's weights: of its files where it is a folder, which may
    be quantised; else of its parameters, `value_bytes` each; None where neither is known."""
    if files := sum(file.stat().st_size for file in Path(path).glob("*.safetensors")):
        return float(files)
    if path in KNOWN_MODELS:
        return float(value_bytes * model_size(model_shapes(path), rank=1).total)
    return None


def require_memory(config: Config, model_path: str) -> MemoryPlan:
    """Returns the plan for the GPU of this machine. Raises UserError when it does not fit, or when
    others hold what it needs."""
    import torch

    card = torch.cuda.get_device_properties(0).total_memory / GIB
    work = step_work(config, model_path)
    plan = plan_memory(config, model_shapes(model_path), card, work)
    problems = plan.shortfalls()
    if problems:
        raise UserError(f"the GPU has {card:.0f} GiB, and {problems[0]}")
    # Those that Ray gives to the samplers; on a cluster the run may come to other cards.
    used = [] if "RAY_ADDRESS" in os.environ else gpus()[: config.rollout.num_actors]
    free = min((card.free for card in used), default=plan.needed)
    if free < plan.needed:
        raise UserError(
            f"{free:.1f} GiB of the GPU are free, and this run needs {plan.needed:.1f}: end what "
            "holds the rest (`nvidia-smi` lists it), or lower rollout.gpu_memory_share and "
            "train.micro_batch_tokens"
        )
    return plan


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
    config: Config, model: Any, work: Work, value_bytes: int = 4, images: bool = True
) -> dict[str, ProcessMemory]:
    """Returns MiB by kind of process, for a run on CPU with weights of `value_bytes` bytes each.
    Without `images` in any question vLLM has no vision tower."""
    from rarl.system.placement import REQUESTS_PER_ACTOR  # with Ray, which takes a second

    size = model_size(model, config.model.lora.rank)
    weights = value_bytes * size.total / MIB
    groups = math.ceil(work.prompts / config.train.num_workers)
    tokens = groups * (work.prompt + work.group * work.completion)  # a prompt counted once
    tokens = min(config.train.micro_batch_tokens, tokens)
    activations = activation_bytes(model, config.train.gradient_checkpointing, value_bytes)
    asked = REQUESTS_PER_ACTOR * config.rollout.num_actors
    questions = min(config.evaluation.max_examples or asked, asked) if config.data.eval else 0
    # pictures as bytes of three colours
    questions_bytes = HELD * questions * work.image * IMAGE_TOKEN_PIXELS * 3
    trainer = {
        "weights": weights,
        "adapter, gradient, optimizer": adapter_bytes(size) / MIB,
        ACTIVATIONS: tokens * activations / MIB,
        HEAD: 2 * HEAD_CHUNK_MIB,
    }
    held = weights if images else value_bytes * size.text / MIB
    sampler = {"weights": held, CACHE: config.rollout.kv_cache_mib}
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
        if (of_judge := judge_weights(judge_path(config), 4)) is not None:
            judge["weights"] = of_judge / MIB
        plan[JUDGE] = ProcessMemory(1, LIBRARIES["sampler"], judge)
    return plan
