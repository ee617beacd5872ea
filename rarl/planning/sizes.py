"""The sizes that a plan is made from: of the model and of what an update keeps, of the work in one
step, and the operations of one group in products with weights and attention.

A product of (n, a) and (a, b) counts 2nab operations. Forward, a frozen weight costs 2 per token;
backward through it, which needs the gradient of the input only, another 2; the adapter's weights
about 6 in all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rarl.errors import UserError

if TYPE_CHECKING:
    from rarl.config import Config

FIGURES_FILE = Path(__file__).with_name("figures.yaml")
FIGURES: dict[str, Any] = yaml.safe_load(FIGURES_FILE.read_text(encoding="utf-8"))
KNOWN_MODELS: dict[str, dict[str, Any]] = FIGURES["models"]
QWEN2_VL_2B = KNOWN_MODELS["Qwen/Qwen2-VL-2B-Instruct"]
PATCH_VALUES = 3 * 2 * 14 * 14  # of one patch: colours, frames, height, width
PATCHES_PER_TOKEN = 4  # of Qwen2-VL: its merger makes one token of 2 x 2 patches
IMAGE_TOKEN_PIXELS = PATCHES_PER_TOKEN * 14 * 14
TEXT_TOKENS = 100  # of a prompt, without its image: instructions and question; an assumption
MEAN_LENGTH = 0.5  # of max_completion_tokens: what the demo has; an assumption elsewhere
QUESTION_TOKENS = 60  # of a question that is read with a thinking and no image; an assumption
READ_BY = {"consistency", "explains", "fluency"}  # rewards that have a thinking read
RANK = 8  # of the adapter: a few percent of the operations, so that other ranks need no other sum


@dataclass(frozen=True)
class ModelSize:
    """Numbers of parameters. `text` is the language model with its tied embedding;
    `key_value_width` that of the keys, or of the values, of one token in one layer."""

    total: int
    text: int
    adapter: int
    layers: int
    key_value_width: int

    def cache_bytes(self, value_bytes: int) -> int:
        """Returns the bytes of the keys and values of one token in all layers."""
        return 2 * self.layers * self.key_value_width * value_bytes


@dataclass(frozen=True)
class Work:
    """One step. Lengths in tokens; `image` is of the `images` of a prompt, `completion` is the
    mean, `longest` the bound, and `sequences` are sampled by an engine at once. `reference` asks
    for a pass without gradient, for the KL to the base model. Of each completion, `readings`
    thinkings go into `questions` prompts without an image, for rewards that ask what follows from
    it."""

    prompts: int
    group: int
    prompt: int
    image: int
    completion: int
    longest: int
    sequences: int
    epochs: int = 1
    reference: bool = False
    checkpointing: bool = False
    readings: int = 0
    questions: int = 0
    images: float = 1.0

    @property
    def patches(self) -> int:
        return PATCHES_PER_TOKEN * self.image


@dataclass(frozen=True)
class GroupShape:
    """`prompt` tokens with the images', `completion` tokens each, `group` completions, `patches` of
    the `images`."""

    prompt: int
    completion: float
    group: int
    patches: int
    images: float = 1.0


def model_shapes(path: str, key: str = "model.path") -> Any:
    """Returns the transformers configuration of a model folder, or of a model whose shapes are
    known here. Raises UserError, which names the configuration's `key`."""
    from transformers import AutoConfig, Qwen2VLConfig

    if not Path(path).is_dir() and path in KNOWN_MODELS:
        return Qwen2VLConfig(**KNOWN_MODELS[path])
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{key}={path}: no model configuration there ({reason})") from None


def model_size(model: Any, rank: int) -> ModelSize:
    """Counts all weights, and those of an adapter of this rank on the language model's linear
    layers."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        empty = AutoModelForImageTextToText.from_config(model)
    adapter, text = 0, model.text_config
    for name, module in empty.named_modules():
        if isinstance(module, torch.nn.Linear) and "language_model" in name:
            adapter += rank * (module.in_features + module.out_features)
    return ModelSize(
        total=sum(p.numel() for p in empty.parameters()),
        text=sum(p.numel() for name, p in empty.named_parameters() if "visual" not in name),
        adapter=adapter,
        layers=text.num_hidden_layers,
        key_value_width=text.hidden_size * text.num_key_value_heads // text.num_attention_heads,
    )


def adapter_bytes(size: ModelSize) -> int:
    """Returns the bytes of weight, gradient and the two moments of Adam, all float32."""
    return 16 * size.adapter


def layer_bytes(model: Any, value_bytes: int) -> int:
    """Returns what the shared-prefix pass keeps of each token in one layer for the backward pass:
    ten hidden-sized tensors, queries, keys and values before and after rotation, and the two
    MLP-sized ones that `kernels.LoraMlp` keeps. The ten fit the peaks of `bench/plan.py
    --activations`, in float32, and in bfloat16 those of `bench/meta_update.py`."""
    text = model.text_config
    hidden = text.hidden_size
    heads = 2 * hidden + 4 * hidden * text.num_key_value_heads // text.num_attention_heads
    return int(value_bytes * (10 * hidden + heads + 2 * text.intermediate_size))


def activation_bytes(model: Any, checkpointing: bool, value_bytes: int) -> int:
    """Returns what the shared-prefix pass keeps of each token: of all layers, or with checkpointing
    of two at a time; and each layer's input."""
    text = model.text_config
    layers = 2 if checkpointing else text.num_hidden_layers
    inputs = value_bytes * text.num_hidden_layers * text.hidden_size
    return int(layers * layer_bytes(model, value_bytes) + inputs)


def step_work(
    config: Config, model_path: str, means: tuple[float, float, float] | None = None
) -> Work:
    """Returns the work in a step of this configuration. `means` are the data's tokens of a prompt,
    those of its images, and the number of these; without them they are assumed, as those of
    completions are."""
    rollout, train = config.rollout, config.train
    room = max(1, rollout.max_model_length - rollout.max_completion_tokens)
    pixels = config.data.max_pixels or processor_pixels(model_path)
    image = min(room, pixels // IMAGE_TOKEN_PIXELS) if pixels else max(0, room - TEXT_TOKENS)
    prompt, images = min(room, image + TEXT_TOKENS), 1.0
    if means is not None:
        prompt, image, images = round(means[0]), round(means[1]), means[2]
    return Work(
        prompts=train.prompts_per_step,
        group=rollout.group_size,
        prompt=prompt,
        image=image,
        completion=max(1, round(MEAN_LENGTH * rollout.max_completion_tokens)),
        longest=rollout.max_completion_tokens,
        sequences=rollout.max_sequences,
        epochs=config.grpo.epochs,
        reference=config.grpo.kl_beta > 0,
        checkpointing=train.gradient_checkpointing,
        readings=len(READ_BY & config.rewards.keys()),
        questions=questions_asked(config),
        images=images,
    )


def questions_asked(config: Config) -> int:
    """Returns how many prompts without an image are made of a completion for its rewards. Images
    may have fewer questions: this is the most."""
    # Not at the top: where the update is measured alone, packages that rewards need are not there.
    from rarl.rewards.thinking import SIBLINGS

    rewards, times = config.rewards, dict.fromkeys(READ_BY, 1)
    if "explains" in rewards:
        times["explains"] += int(rewards["explains"].options.get("siblings", SIBLINGS))
    return sum(times.get(name, 0) for name in rewards)


def processor_pixels(model_path: str) -> int | None:
    """Returns the largest picture that the model's own processor makes, where its folder is at hand
    and says so."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = Path(model_path) / name
        held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        held = held.get("image_processor", held)
        found = held.get("max_pixels") or (held.get("size") or {}).get("longest_edge")
        if found:
            return int(found)
    return None


def update_flops(shape: GroupShape, config: Any) -> float:
    """Returns the operations that a shared-prefix update cannot do without.

    Attention costs 4 per pair of positions and width forward, and 8 backward. The prompt's last
    token counts with each completion; of the last layer the others need keys and values only. The
    vision tower runs forward only.
    """
    text = config.text_config
    p, c = shape.prompt - 1, shape.group * shape.completion
    rows = (p + c) * (text.num_hidden_layers - 1) + c  # rows through whole layers
    keys = 2 * text.hidden_size**2 * text.num_key_value_heads // text.num_attention_heads
    own = shape.completion * (shape.completion + 1) / 2
    pairs = text.num_hidden_layers * shape.group * (shape.completion * p + own)
    pairs += (text.num_hidden_layers - 1) * p * (p + 1) / 2
    products = rows * per_row(text) + p * 4 * keys + 12 * text.hidden_size * pairs
    return products + head_flops(shape, text) + tower_flops(shape.patches, config, shape.images)


def per_row(text: Any) -> float:
    """Returns the operations of one token in one layer, forward and backward: products with frozen
    weights and with the adapter."""
    d, wide = text.hidden_size, text.intermediate_size
    kv = d * text.num_key_value_heads // text.num_attention_heads
    weights = 2 * d * d + 2 * d * kv + 3 * d * wide
    adapter = RANK * (4 * d + 2 * (d + kv) + 3 * (d + wide))
    return float(4 * weights + 6 * adapter)


def head_flops(shape: GroupShape, text: Any) -> float:
    return 4.0 * shape.group * shape.completion * text.hidden_size * text.vocab_size


def tower_flops(patches: int, config: Any, images: float = 1.0) -> float:
    """Returns the operations of the vision tower on the pictures of a prompt, which have so many
    patches together, forward. Patches attend to those of their own picture."""
    vision = config.vision_config
    block = (4 + 2 * int(vision.mlp_ratio)) * vision.embed_dim**2
    merger = (4 * vision.embed_dim) ** 2 + 4 * vision.embed_dim * vision.hidden_size
    products = patches * (vision.depth * block + PATCH_VALUES * vision.embed_dim + merger / 4)
    return 2.0 * products + 4.0 * vision.depth * patches**2 / max(1.0, images) * vision.embed_dim
