"""Log-probs of completions under the policy: the interface, the plain way, the features of images,
and the choice between the plain way and the shared-prefix one."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from rarl.distribution import BAN_BIAS, SamplingDistribution
from rarl.grpo.group import TokenGroup, patch_grid
from rarl.patches import PatchRule

# The `model_type`s that the shared-prefix pass knows: one decoder with small differences.
SUPPORTED_MODELS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
# The vision tower takes so many patches in one call, in small images: of large ones one alone fills
# a GPU, and several would only take memory.
PATCHES_AT_ONCE = 1024
# Bounds of the mean |log-prob difference| of the two passes: about 1e-7 and 5e-3 were seen.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFeatures:
    """What the vision tower makes of a group's images, without gradient, in the model's dtype.

    tokens: (image tokens, D), what stands in for the placeholders. deepstack: the same shape each,
    what is added to the output of the first layers (Qwen3-VL only).
    """

    tokens: Tensor
    deepstack: list[Tensor]

    @classmethod
    def joined(cls, parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """Returns the features of one image or more as one, in their order."""
        if len(parts) == 1:
            return parts[0]
        deepstack = [torch.cat(layer) for layer in zip(*(p.deepstack for p in parts), strict=True)]
        return cls(torch.cat([part.tokens for part in parts]), deepstack)


class Shown(NamedTuple):
    """One image of the group with this key."""

    key: int
    pixels: NDArray[np.uint8]
    rule: PatchRule


class VisionCache:
    """Keeps the features of every group it was asked for: the reference pass and further epochs
    over the same batch find them here. It lives for one update: 512 image tokens of the 2B model
    are 1.5 MiB in bfloat16."""

    def __init__(self) -> None:
        self.stored: dict[int, ImageFeatures] = {}

    def features(self, model: Any, groups: Sequence[TokenGroup]) -> list[ImageFeatures]:
        """Returns the features of each group that has images; the frozen tower runs once for each
        key, and not at all where there is no image."""
        seen = [group for group in groups if group.pixels]
        missing = {group.key: group for group in seen if group.key not in self.stored}
        images = [Shown(g.key, one, g.patch_rule) for g in missing.values() for one in g.pixels]
        found: dict[int, list[ImageFeatures]] = {}
        for part in together(images):
            for image, features in zip(part, image_features(model, part), strict=True):
                found.setdefault(image.key, []).append(features)
        self.stored |= {key: ImageFeatures.joined(parts) for key, parts in found.items()}
        return [self.stored[group.key] for group in seen]


def together(images: Sequence[Shown]) -> Iterator[list[Shown]]:
    """Yields images that have at most PATCHES_AT_ONCE patches together, or one alone."""
    part: list[Shown] = []
    count = 0
    for image in images:
        patches = math.prod(patch_grid(image.pixels, image.rule))
        if part and count + patches > PATCHES_AT_ONCE:
            yield part
            part, count = [], 0
        part.append(image)
        count += patches
    if part:
        yield part


@torch.no_grad()
def image_features(model: Any, images: Sequence[Shown]) -> list[ImageFeatures]:
    """Runs the vision tower once, on all of these images."""
    patches = torch.cat([image_patches(one.pixels, one.rule, model.device) for one in images])
    grid = torch.tensor([patch_grid(one.pixels, one.rule) for one in images]).to(model.device)
    out = model.model.get_image_features(patches, grid)
    deepstack = getattr(out, "deepstack_features", None) or []
    return [
        ImageFeatures(tokens, [layer[index] for layer in deepstack])
        for index, tokens in enumerate(out.pooler_output)
    ]


def make_patches(group: TokenGroup, device: torch.device | str) -> Tensor:
    """Returns the patches of all images of a group, of which it has one at least."""
    return torch.cat([image_patches(one, group.patch_rule, device) for one in group.pixels])


def image_patches(pixels: NDArray[np.uint8], rule: PatchRule, device: torch.device | str) -> Tensor:
    """Returns the (patches, colours * frames * size * size) float32 that the model's own image
    processor makes of an image, bit for bit on a CPU."""
    size, merge = rule.size, rule.merge
    _, rows, columns = patch_grid(pixels, rule)
    colours = torch.tensor(pixels, device=device).permute(2, 0, 1).float()
    mean, std = (torch.tensor(each, device=device)[:, None, None] for each in (rule.mean, rule.std))
    blocks = ((colours - mean) / std).reshape(
        3, rows // merge, merge, size, columns // merge, merge, size
    )
    # (block rows, block columns, merge, merge, 3, 1, size, size), and each picture is all frames.
    ordered = blocks.permute(1, 4, 2, 5, 0, 3, 6).unsqueeze(5)
    return ordered.expand(*ordered.shape[:5], rule.frames, size, size).reshape(rows * columns, -1)


@dataclass(frozen=True)
class ForwardOutput:
    """Of all N completions of all groups in order, padded with zeros on the right to T tokens;
    float32. logprobs: (N, T), with gradient. entropy: (N, T) in nats, without."""

    logprobs: Tensor
    entropy: Tensor


# (policy, groups, what the sampler drew from, features of the images) → log-probs and entropies.
ForwardPass = Callable[
    [PeftModel, list[TokenGroup], SamplingDistribution, VisionCache], ForwardOutput
]


def plain_forward(
    policy: PeftModel,
    groups: list[TokenGroup],
    distribution: SamplingDistribution,
    vision: VisionCache,
) -> ForwardOutput:
    """Runs every completion with its own copy of prompt and images through the model's own forward;
    `vision` is not used. It is the yardstick of the shared-prefix pass and shares no code with it.
    """
    model: Any = policy.get_base_model()
    device = model.device
    each = [(group, completion) for group in groups for completion in group.completions]
    sequences = [
        torch.tensor([*group.prompt_token_ids.tolist(), *completion], device=device)
        for group, completion in each
    ]
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=device)
    input_ids = pad_sequence(sequences, batch_first=True, padding_value=0)
    attention_mask = torch.arange(input_ids.shape[1], device=device)[None] < lengths[:, None]
    copies = [make_patches(g, device).repeat(len(g.completions), 1) for g in groups if g.pixels]
    shown: dict[str, Tensor] = {}
    if copies:
        shown["pixel_values"] = torch.cat(copies).to(model.dtype)
        grids = np.concatenate([group.grid for group, _ in each])
        shown["image_grid_thw"] = torch.from_numpy(grids).to(device)
    hidden = model.model(
        input_ids=input_ids,
        attention_mask=attention_mask.long(),
        mm_token_type_ids=(input_ids == model.config.image_token_id).int() * attention_mask,
        use_cache=False,
        **shown,
    ).last_hidden_state
    # On a GPU the head is in float32, as the sampler's is (see `kernels.product`).
    precision = torch.float32 if device.type == "cuda" else hidden.dtype
    head = model.lm_head.weight.to(precision)
    rows = []
    for index, (group, completion) in enumerate(each):
        start, size = len(group.prompt_token_ids), len(completion)
        own = hidden[index, start - 1 : start + size - 1]
        logits = functional.linear(own.to(precision), head)
        token_ids = input_ids[index, start : start + size]
        rows.append(completion_logprobs(logits, token_ids, distribution))
    columns = [pad_sequence(list(column), batch_first=True) for column in zip(*rows, strict=True)]
    return ForwardOutput(*columns)


def completion_logprobs(
    logits: Tensor, token_ids: Tensor, distribution: SamplingDistribution
) -> tuple[Tensor, Tensor]:
    """(t, vocabulary) logits and (t,) ids → (t,) log-probs and (t,) entropies of what the sampler
    draws from."""
    bias = torch.zeros(logits.shape[-1], device=logits.device)
    bias[distribution.banned_token_ids] = BAN_BIAS
    logprobs = torch.log_softmax((logits.float() + bias) / distribution.temperature, dim=-1)
    entropy = -(logprobs.detach().exp() * logprobs.detach()).sum(dim=-1)
    return logprobs.gather(-1, token_ids[:, None]).squeeze(-1), entropy


def use_patch_projection(model: Any) -> None:
    """Replaces the convolution of a model's patch embedding, in place."""
    embedding = model.model.visual.patch_embed
    embedding.proj = PatchProjection(embedding.proj)


class PatchProjection(nn.Module):
    """The patch embedding as a matrix product: a convolution whose kernel and stride are the whole
    patch, 4 times faster this way on a CPU."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, patches: Tensor) -> Tensor:
        """(patches, channels, frames, height, width) → (patches, D, 1, 1, 1), as the convolution
        gives it."""
        projected = functional.linear(patches.flatten(1), self.weight.flatten(1), self.bias)
        return projected[:, :, None, None, None]


@dataclass(frozen=True)
class ForwardChoice:
    """`difference` is the mean |log-prob difference| of the two passes; None where nothing was
    compared."""

    forward: ForwardPass
    shared: bool
    difference: float | None


def choose_forward(
    policy: PeftModel, group: TokenGroup, distribution: SamplingDistribution, fast: ForwardPass
) -> ForwardChoice:
    """Returns `fast` if it gives the plain pass's log-probs on `group`; else the plain pass, with
    an error logged. A model whose plain pass gives no numbers tells nothing of the other."""
    model: Any = policy.get_base_model()
    kind = model.config.model_type
    if kind not in SUPPORTED_MODELS:
        log.warning("no shared-prefix pass for model type '%s': training with the plain one", kind)
        return ForwardChoice(plain_forward, False, None)
    with torch.no_grad():
        expected = plain_forward(policy, [group], distribution, VisionCache()).logprobs
        if not expected.isfinite().all():
            return ForwardChoice(fast, True, None)
        found = fast(policy, [group], distribution, VisionCache()).logprobs
    tokens = sum(len(completion) for completion in group.completions)
    difference = ((expected - found).abs().sum() / tokens).item()
    if difference <= TOLERANCE[model.dtype]:
        return ForwardChoice(fast, True, difference)
    log.error(
        "the shared-prefix pass differs from the plain one by %.2g per token (tolerance %.2g): "
        "training goes on with the plain pass, several times slower. Please report this with the "
        "model and the version of transformers",
        difference,
        TOLERANCE[model.dtype],
    )
    return ForwardChoice(plain_forward, False, difference)
