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
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from rarl.distribution import SamplingDistribution
from rarl.grpo.forward import ForwardOutput, VisionCache
from rarl.grpo.group import TokenGroup
from rarl.grpo.kernels import apply_linear, apply_mlp, token_logprobs


@dataclass(frozen=True)
class Span:
    """Where one group lies among the packed rows. `mask` is (longest, prefix + longest) bool: what
    the rows of a completion attend to. `scatter` maps the padded (G * longest) rows to packed rows,
    `gather` back; both are None when all completions are equally long."""

    prefix: slice
    completions: slice
    shape: tuple[int, int]
    mask: Tensor
    scatter: Tensor | None
    gather: Tensor | None


@dataclass(frozen=True)
class Packed:
    """A micro-batch as one matrix. `positions` is (3, 1, tokens) for the multimodal rotary
    embedding; `first` is the number of prefix rows, which come before those of the completions, and
    `image_rows` are those of them that stand for images."""

    token_ids: Tensor
    positions: Tensor
    spans: list[Span]
    first: int
    image_rows: Tensor
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
        hidden, deepstack = embed(model, packed, groups, vision)
        text = model.model.language_model
        cos, sin = (part[0, :, None] for part in text.rotary_emb(hidden, packed.positions))
        *lower, last = text.layers
        for index, layer in enumerate(lower):
            arguments = (layer, hidden, cos, sin, packed, False)
            if self.checkpointing and torch.is_grad_enabled():
                # Nothing in a layer is random: no generator's state need be read from the GPU.
                hidden = checkpoint(
                    decoder_layer, *arguments, use_reentrant=False, preserve_rng_state=False
                )
            else:
                hidden = decoder_layer(*arguments)
            if index < len(deepstack):
                hidden = hidden.index_add(0, packed.image_rows, deepstack[index])
        hidden = text.norm(decoder_layer(last, hidden, cos, sin, packed, completions_only=True))
        of_tokens = token_logprobs(hidden, model.lm_head.weight, packed.targets, distribution)
        rows = [pad_sequence(x.split(packed.lengths), batch_first=True) for x in of_tokens]
        return ForwardOutput(*rows)


def pack(model: Any, groups: list[TokenGroup]) -> Packed:
    """Returns token ids, rotary positions and attention layout of the packed rows, on the model's
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
        # A prompt ends in text, where the three coordinates are equal.
        after = prompt_positions[:, -1:]
        for completion in group.completions:
            ids.append(torch.cat([prompt[-1:], torch.tensor(completion[:-1], dtype=torch.long)]))
            positions.append(after + torch.arange(len(completion)))
        lengths = [len(c) for c in group.completions]
        spans.append(group_span(prefix_start, len(prompt) - 1, start, lengths, device))
        prefix_start += len(prompt) - 1
        start += sum(lengths)
    completions = [c for group in groups for c in group.completions]
    # On the CPU: a GPU would have to be waited for before their number is known.
    prefixes = torch.cat(prefix_ids)
    return Packed(
        token_ids=torch.cat([prefixes, *ids]).to(device),
        positions=torch.cat([*prefix_positions, *positions], dim=1)[:, None].to(device),
        spans=spans,
        first=first,
        image_rows=(prefixes == model.config.image_token_id).nonzero().squeeze(1).to(device),
        targets=torch.tensor([token for c in completions for token in c], device=device),
        lengths=[len(c) for c in completions],
    )


def group_span(
    prefix_start: int, prefix: int, start: int, lengths: list[int], device: torch.device
) -> Span:
    """Returns the layout of a group whose prompt has `prefix` rows from `prefix_start` on, and
    whose completions have `lengths` rows each from `start` on."""
    longest = max(lengths)
    own = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
    mask = torch.cat([own.new_ones(longest, prefix), own], dim=1)
    scatter = gather = None
    if min(lengths) < longest:
        counts = torch.tensor(lengths)
        offsets = torch.cumsum(counts, 0) - counts
        column = torch.arange(longest)
        # Padding repeats the completion's last row: it is never attended to by a real row, and its
        # output is dropped.
        rows = offsets[:, None] + torch.minimum(column[None], counts[:, None] - 1)
        scatter = rows.flatten().to(device)
        gather = (column[None] < counts[:, None]).flatten().nonzero().squeeze(1).to(device)
    prefix_rows = slice(prefix_start, prefix_start + prefix)
    own_rows = slice(start, start + sum(lengths))
    return Span(prefix_rows, own_rows, (len(lengths), longest), mask, scatter, gather)


def rotary_positions(model: Any, group: TokenGroup) -> Tensor:
    """Returns the (3, P) positions of the prompt, from the model's own rule."""
    ids, grid = torch.from_numpy(group.prompt_token_ids)[None], torch.from_numpy(group.grid)
    image = (ids == model.config.image_token_id).int()
    positions: Tensor = model.model.get_rope_index(ids, image, image_grid_thw=grid)[0]
    return positions[:, 0]


def embed(
    model: Any, packed: Packed, groups: list[TokenGroup], vision: VisionCache
) -> tuple[Tensor, list[Tensor]]:
    """Returns the (tokens, D) input of the first layer, and what the first layers add to the rows
    of image tokens. All of it is frozen."""
    with torch.no_grad():
        hidden: Tensor = model.get_input_embeddings()(packed.token_ids)
        features = vision.features(model, groups)
        if not features:
            return hidden, []
        hidden[packed.image_rows] = torch.cat([f.tokens for f in features]).to(hidden.dtype)
        added = zip(*(f.deepstack for f in features), strict=True)
        deepstack = [torch.cat(parts) for parts in added]
    return hidden, deepstack


def decoder_layer(
    layer: Any, hidden: Tensor, cos: Tensor, sin: Tensor, packed: Packed, completions_only: bool
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
    """Returns x_low cos - x_high sin beside x_high cos + x_low sin: halves of the last axis."""
    half = x.shape[-1] // 2
    cos, sin = cos[..., :half], sin[..., :half]
    low, high = x.split(half, dim=-1)
    out = torch.empty_like(x)
    torch.mul(low, cos, out=out[..., :half]).addcmul_(high, sin, value=-1)
    torch.mul(high, cos, out=out[..., half:]).addcmul_(low, sin)
    return out


def attend(q: Tensor, k: Tensor, v: Tensor, spans: list[Span], first: int) -> Tensor:
    """Attends each prompt to itself, and each completion to its group's prompt and to itself.

    (rows, heads, d) queries and (tokens, kv heads, d) keys and values → (rows, heads * d). Row i of
    the queries is packed row first + i.
    """
    outputs = []
    if first == 0:
        outputs = [prefix_attention(q[s.prefix], k[s.prefix], v[s.prefix]) for s in spans]
    for span in spans:
        rows = slice(span.completions.start - first, span.completions.stop - first)
        outputs.append(completion_attention(q[rows], k, v, span))
    return torch.cat(outputs).flatten(1)


def prefix_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal self-attention of one prompt: (P, heads, d) → (P, heads, d)."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return out[0].transpose(0, 1)


def completion_attention(q: Tensor, k: Tensor, v: Tensor, span: Span) -> Tensor:
    """The G completions of one group, each over the shared prefix and itself: (rows, heads, d) →
    (rows, heads, d). Heads that share keys are folded into the rows, so that keys are not repeated
    for them."""
    group, longest = span.shape
    heads, kv_heads, d = q.shape[1], k.shape[1], q.shape[2]
    folded = heads // kv_heads
    own_k, own_v = k[span.completions], v[span.completions]
    if span.scatter is not None:
        q, own_k, own_v = q[span.scatter], own_k[span.scatter], own_v[span.scatter]
    q = q.view(group, longest, kv_heads, folded, d).permute(0, 2, 3, 1, 4)
    q = q.reshape(group, kv_heads, folded * longest, d)
    shared = (x[span.prefix].expand(group, -1, -1, -1) for x in (k, v))
    own = (x.view(group, longest, kv_heads, d) for x in (own_k, own_v))
    keys, values = (torch.cat(pair, 1).transpose(1, 2) for pair in zip(shared, own, strict=True))
    mask = span.mask.repeat(folded, 1)
    out = functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    out = out.view(group, kv_heads, folded, longest, d).permute(0, 3, 1, 2, 4)
    out = out.reshape(group * longest, heads, d)
    return out if span.gather is None else out[span.gather]
