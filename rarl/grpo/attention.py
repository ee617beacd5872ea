"""Attention among packed rows: each prompt to itself, each completion to its group's prompt and to
itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


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


def group_span(
    prefix_start: int, prefix: int, start: int, lengths: list[int], device: torch.device
) -> Span:
    longest = max(lengths)
    own = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
    mask = torch.cat([own.new_ones(longest, prefix), own], dim=1)
    scatter = gather = None
    if min(lengths) < longest:
        counts = torch.tensor(lengths)
        offsets = torch.cumsum(counts, 0) - counts
        column = torch.arange(longest)
        real = column[None] < counts[:, None]
        # Padding repeats the completion's last row: it is never attended to by a real row, and its
        # output is dropped.
        scatter = (
            (offsets[:, None] + torch.minimum(column[None], counts[:, None] - 1))
            .flatten()
            .to(device)
        )
        gather = real.flatten().nonzero().squeeze(1).to(device)
    return Span(
        prefix=slice(prefix_start, prefix_start + prefix),
        completions=slice(start, start + sum(lengths)),
        shape=(len(lengths), longest),
        mask=mask,
        scatter=scatter,
        gather=gather,
    )


def attend(q: Tensor, k: Tensor, v: Tensor, spans: list[Span], first: int) -> Tensor:
    """(rows, heads, d) queries and (tokens, kv heads, d) keys and values → (rows, heads * d). Row i
    of the queries is packed row first + i."""
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
    (rows, heads, d).

    Heads that share keys are folded into the rows, so that keys are not repeated for them.
    """
    group, longest = span.shape
    heads, kv_heads, d = q.shape[1], k.shape[1], q.shape[2]
    folded = heads // kv_heads
    own_k, own_v = k[span.completions], v[span.completions]
    if span.scatter is not None:
        q, own_k, own_v = q[span.scatter], own_k[span.scatter], own_v[span.scatter]
    q = (
        q.view(group, longest, kv_heads, folded, d)
        .permute(0, 2, 3, 1, 4)
        .reshape(group, kv_heads, folded * longest, d)
    )
    keys, values = (
        torch.cat(
            [x[span.prefix].expand(group, -1, -1, -1), own.view(group, longest, kv_heads, d)], 1
        ).transpose(1, 2)
        for x, own in ((k, own_k), (v, own_v))
    )
    out = functional.scaled_dot_product_attention(
        q, keys, values, attn_mask=span.mask.repeat(folded, 1)
    )
    out = (
        out.view(group, kv_heads, folded, longest, d)
        .permute(0, 3, 1, 2, 4)
        .reshape(group * longest, heads, d)
    )
    return out if span.gather is None else out[span.gather]
