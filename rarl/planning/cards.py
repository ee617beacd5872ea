"""GPUs by name, with what their makers publish. Nothing here was measured."""

from __future__ import annotations

from dataclasses import dataclass

from rarl.errors import UserError


@dataclass(frozen=True)
class Card:
    """`memory` in GiB as PyTorch sees it, `tflops` dense bfloat16 with float32 sums, `bandwidth` in
    GB/s."""

    name: str
    memory: float
    tflops: float
    bandwidth: float


# Tensor-core rate and memory bandwidth from NVIDIA's data sheets, SXM where there are several
# forms.
CARDS = {
    card.name: card
    for card in (
        Card("a10-24g", 22.0, 125, 600),
        Card("l4-24g", 22.0, 121, 300),
        Card("rtx4090-24g", 23.6, 165, 1008),
        Card("l40s-48g", 44.4, 362, 864),
        Card("a100-40g", 39.4, 312, 1555),
        Card("a100-80g", 79.1, 312, 2039),
        Card("h100-80g", 79.1, 989, 3350),
        Card("h200-141g", 139.7, 989, 4800),
    )
}
DEFAULT_CARD = "a100-40g"


def find_card(name: str, memory: float | None = None) -> Card:
    """A card by name, with `memory` GiB where a part of it is meant. Raises UserError for one that
    is not listed."""
    if name not in CARDS:
        raise UserError(
            f"--gpu {name}: not a card that is known here; choose one of {', '.join(CARDS)}"
        )
    card = CARDS[name]
    if memory is None:
        return card
    if memory <= 0:
        raise UserError(f"--gpu-gib {memory:g}: a card has more than 0 GiB")
    return Card(card.name, memory, card.tflops, card.bandwidth)
