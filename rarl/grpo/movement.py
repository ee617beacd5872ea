"""How far an adapter has moved the layers that it is on: what says that a policy learns at all,
long before its answers do."""

from __future__ import annotations

from statistics import median

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer


class Movement:
    """Keeps the norms of the frozen weights, which never change."""

    def __init__(self, policy: PeftModel) -> None:
        self.layers = [one for one in policy.modules() if isinstance(one, LoraLayer)]
        self.norms = [float(one.get_base_layer().weight.float().norm()) for one in self.layers]

    @torch.no_grad()
    def median(self) -> float:
        """Returns ‖(α/r) B A‖ / ‖W‖ (Frobenius), the median over the layers. The product is never
        made: ‖B A‖² is the sum of (BᵀB) ∘ (A Aᵀ), which are r × r."""
        found = []
        for layer, norm in zip(self.layers, self.norms, strict=True):
            a, b = (getattr(layer, part)["default"].weight.float() for part in ("lora_A", "lora_B"))
            square = ((b.T @ b) * (a @ a.T)).sum().clamp(min=0.0)
            found.append(layer.scaling["default"] * square.sqrt() / norm)
        return median(torch.stack(found).tolist())
