"""Log-probs of a group's G completions with image and prompt computed once: exact, and several
times cheaper.

All tokens of a micro-batch go through each layer as one packed (tokens, D) matrix without padding:
first the prompts without their last token ("prefixes"), then the completions, each led by the
prompt's last token, whose output predicts the completion's first token. Only attention knows the
difference: prefixes attend to themselves, a completion to its group's prefix and itself. In the
last layer a prefix gives keys and values only. See docs/shared-prefix.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from rarl.distribution import SamplingDistribution
from rarl.grpo.attention import Span, attend, group_span
from rarl.grpo.forward import ForwardOutput, VisionCache
from rarl.grpo.group import TokenGroup
from rarl.grpo.head import token_logprobs
from rarl.grpo.lora_layers import apply_linear, apply_mlp


@dataclass(frozen=True)
class Packed:
    """A micro-batch. `positions` is (3, 1, tokens) for the multimodal rotary embedding; `first` is
    the number of prefix rows, which come before those of the completions."""

    token_ids: Tensor
    positions: Tensor
    spans: list[Span]
    first: int
    targets: Tensor
    lengths: list[int]


@dataclass(frozen=True)
class SharedPrefixForward:
    """A `ForwardPass` for the Qwen-VL models. `checkpointing` recomputes each layer in the backward
    pass."""

    checkpointing: bool = False

    def __call__(
        self,
        policy: PeftModel,
        groups: list[TokenGroup],
        distribution: SamplingDistribution,
        vision: VisionCache,
    ) -> ForwardOutput:
        model: Any = policy.get_base_model()
        packed = pack(model, groups)
        hidden, image_rows, deepstack = embed(model, packed, groups, vision)
        text = model.model.language_model
        cos, sin = (part[0, :, None] for part in text.rotary_emb(hidden, packed.positions))
        *lower, last = text.layers
        for index, layer in enumerate(lower):
            run = partial(decoder_layer, layer, cos=cos, sin=sin, packed=packed)
            if self.checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(run, hidden, use_reentrant=False)
            else:
                hidden = run(hidden)
            if index < len(deepstack):
                hidden = hidden.index_add(0, image_rows, deepstack[index])
        hidden = text.norm(decoder_layer(last, hidden, cos, sin, packed, completions_only=True))
        logprobs, entropy = token_logprobs(
            hidden, model.lm_head.weight, packed.targets, distribution
        )
        return ForwardOutput(
            *(pad_sequence(x.split(packed.lengths), batch_first=True) for x in (logprobs, entropy))
        )


def pack(model: Any, groups: list[TokenGroup]) -> Packed:
    """Token ids, rotary positions and attention layout of the packed rows, on the model's
    device."""
    device = model.device
    prefix_ids, prefix_positions, ids, positions, spans = [], [], [], [], []
    prefix_start, start = 0, sum(len(g.prompt_token_ids) - 1 for g in groups)
    first = start
    for group in groups:
        prompt = torch.from_numpy(group.prompt_token_ids)
        prompt_positions = rotary_positions(model, group)
        prefix_ids.append(prompt[:-1])
        prefix_positions.append(prompt_positions[:, :-1])
        # a prompt ends in text, where the three coordinates are equal
        after = prompt_positions[:, -1:]
        for completion in group.completions:
            ids.append(torch.cat([prompt[-1:], torch.tensor(completion[:-1], dtype=torch.long)]))
            positions.append(after + torch.arange(len(completion)))
        lengths = [len(c) for c in group.completions]
        spans.append(group_span(prefix_start, len(prompt) - 1, start, lengths, device))
        prefix_start += len(prompt) - 1
        start += sum(lengths)
    completions = [c for group in groups for c in group.completions]
    return Packed(
        token_ids=torch.cat([*prefix_ids, *ids]).to(device),
        positions=torch.cat([*prefix_positions, *positions], dim=1)[:, None].to(device),
        spans=spans,
        first=first,
        targets=torch.tensor([token for c in completions for token in c], device=device),
        lengths=[len(c) for c in completions],
    )


def rotary_positions(model: Any, group: TokenGroup) -> Tensor:
    """(3, P) positions of the prompt, from the model's own rule."""
    ids = torch.from_numpy(group.prompt_token_ids)[None]
    image = (ids == model.config.image_token_id).int()
    positions: Tensor = model.model.get_rope_index(
        ids, image, image_grid_thw=torch.from_numpy(group.grid)[None]
    )[0]
    return positions[:, 0]


def embed(
    model: Any, packed: Packed, groups: list[TokenGroup], vision: VisionCache
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(tokens, D) input of the first layer, which of its rows are image tokens, and what the first
    layers add to those.

    All frozen.
    """
    with torch.no_grad():
        hidden: Tensor = model.get_input_embeddings()(packed.token_ids)
        features = [vision.features(model, group) for group in groups]
        image_rows = (
            (packed.token_ids[: packed.first] == model.config.image_token_id).nonzero().squeeze(1)
        )
        hidden[image_rows] = torch.cat([f.tokens for f in features]).to(hidden.dtype)
        deepstack = [
            torch.cat(parts) for parts in zip(*(f.deepstack for f in features), strict=True)
        ]
    return hidden, image_rows, deepstack


def decoder_layer(
    layer: Any,
    hidden: Tensor,
    cos: Tensor,
    sin: Tensor,
    packed: Packed,
    completions_only: bool = False,
) -> Tensor:
    """(tokens, D) → (tokens, D); with `completions_only`, only the rows of the completions come
    out."""
    attention = layer.self_attn
    first = packed.first if completions_only else 0
    normed = layer.input_layernorm(hidden)
    head_dim = attention.head_dim
    q = apply_linear(attention.q_proj, normed[first:]).unflatten(-1, (-1, head_dim))
    k = apply_linear(attention.k_proj, normed).unflatten(-1, (-1, head_dim))
    v = apply_linear(attention.v_proj, normed).unflatten(-1, (-1, head_dim))
    if hasattr(attention, "q_norm"):  # Qwen3-VL
        q, k = attention.q_norm(q), attention.k_norm(k)
    q, k = Rotate.apply(q, cos[first:], sin[first:]), Rotate.apply(k, cos, sin)
    attended = attend(q, k, v, packed.spans, first)
    hidden = hidden[first:] + apply_linear(attention.o_proj, attended)
    normed = layer.post_attention_layernorm(hidden)
    return hidden + apply_mlp(layer.mlp, normed)


class Rotate(torch.autograd.Function):
    """Rotary embedding of (tokens, heads, d) by (tokens, 1, d) cosines and sines, whose two halves
    are equal."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return rotated(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        return rotated(grads[0], cos, -sin), None, None


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    cos, sin = cos[..., :half], sin[..., :half]
    low, high = x.split(half, dim=-1)
    out = torch.empty_like(x)
    torch.mul(low, cos, out=out[..., :half]).addcmul_(high, sin, value=-1)
    torch.mul(high, cos, out=out[..., half:]).addcmul_(low, sin)
    return out
