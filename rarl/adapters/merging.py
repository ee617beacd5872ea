"""Several LoRA adapters made into one: by the average of their matrices, exactly, or exactly and
then cut back to a rank.

What an adapter does to a layer is the change ΔW = (α/r) B A. The exact merge of adapters with
weights w is the change Σ w ΔW. It has the rank of all of them together, since

    Σ w (α/r) B A = [w₁ (α₁/r₁) B₁ | w₂ (α₂/r₂) B₂ | …] [A₁ ; A₂ ; …],

which is how it is stored (FLoRA, arXiv 2409.05976, section 4). The average of the matrices, Σ w A
and Σ w B, is what federated averaging does (Fed-MedLoRA, arXiv 2601.22124). It keeps the rank, and
is another change: its product has the cross terms B₁ A₂. Everything is computed in float64, through
matrices of the rank's size; a layer's change is never made in full.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarl.adapters.origin import WEIGHTS
from rarl.errors import UserError

CONFIG = "adapter_config.json"
A, B = ".lora_A.weight", ".lora_B.weight"
# Settings of PEFT under which a change is not (α/r) B A for all layers alike.
UNUSUAL = (
    *("use_dora", "use_rslora", "use_qalora", "use_bdlora", "rank_pattern", "alpha_pattern"),
    *("modules_to_save", "lora_bias", "trainable_token_indices", "kasa_config"),
)

Matrix = NDArray[np.float64]
# layer → A (r, in) and B (out, r), whose product B A is the whole change of the layer.
Change = dict[str, tuple[Matrix, Matrix]]


@dataclass(frozen=True)
class PeftAdapter:
    """A PEFT folder as it is: float32 arrays under PEFT's names, and its configuration."""

    arrays: Mapping[str, NDArray[np.float32]]
    config: Mapping[str, Any]

    @property
    def rank(self) -> int:
        return int(self.config["r"])

    @property
    def alpha(self) -> int:
        return int(self.config["lora_alpha"])

    @property
    def scale(self) -> float:
        """α / r."""
        return self.alpha / self.rank

    @property
    def layers(self) -> list[str]:
        """The names of the layers that it changes."""
        return sorted(name.removesuffix(A) for name in self.arrays if name.endswith(A))

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """How wide the input and the output of each layer are."""
        return {
            layer: (self.arrays[layer + A].shape[1], self.arrays[layer + B].shape[0])
            for layer in self.layers
        }

    def require_plain(self, named: object) -> None:
        """Raises UserError, which calls it `named`, if it is anything but matrices A and B of one
        rank."""
        for key in UNUSUAL:
            if self.config.get(key):
                raise UserError(f"{named}: {key} is set in its {CONFIG}; only plain LoRA is merged")
        if str(self.config.get("bias", "none")) != "none":
            raise UserError(f"{named}: it has biases; only plain LoRA is merged")
        wanted = {layer + part for layer in self.layers for part in (A, B)}
        if not wanted or wanted != set(self.arrays):
            odd = min(wanted ^ set(self.arrays), default="nothing at all")
            raise UserError(f"{named}: holds {odd}; only plain LoRA is merged")
        for name, array in self.arrays.items():
            if array.ndim != 2 or array.shape[0 if name.endswith(A) else 1] != self.rank:
                shape = "×".join(map(str, array.shape))
                raise UserError(f"{named}: {name} is {shape}, and the rank is {self.rank}")

    def change(self) -> Change:
        """Returns what it does to each layer; α / r is in B."""
        return {
            layer: (
                self.arrays[layer + A].astype(np.float64),
                self.scale * self.arrays[layer + B].astype(np.float64),
            )
            for layer in self.layers
        }

    def save(self, folder: Path) -> None:
        """Writes a standard PEFT folder. Raises OSError."""
        from safetensors.numpy import save_file

        arrays = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}
        save_file(arrays, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / WEIGHTS).chmod(0o644)  # safetensors writes for its own user alone
        text = json.dumps(dict(self.config), indent=2) + "\n"
        (folder / CONFIG).write_text(text, encoding="utf-8")


def average(adapters: Sequence[PeftAdapter], weights: Sequence[float]) -> PeftAdapter:
    """Returns Σ w A and Σ w B of adapters of one rank and scale: no average of their changes."""
    arrays = {}
    for name in adapters[0].arrays:
        each = np.stack([one.arrays[name].astype(np.float64) for one in adapters])
        arrays[name] = np.einsum("k,kij->ij", np.array(weights), each).astype(np.float32)
    return PeftAdapter(arrays, adapters[0].config)


def weighted_sum(changes: Sequence[Change], weights: Sequence[float]) -> Change:
    """Returns Σ w ΔW exactly, of the rank of all together. Weights may be negative."""
    return {
        layer: (
            np.concatenate([one[layer][0] for one in changes], axis=0),
            np.concatenate(
                [weight * one[layer][1] for one, weight in zip(changes, weights, strict=True)],
                axis=1,
            ),
        )
        for layer in changes[0]
    }


def core(a: Matrix, b: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Returns Q (out, k), C (k, l) and P (in, l) with orthonormal columns of Q and P and
    Q C Pᵀ = B A, k and l at most the rank."""
    q, right = np.linalg.qr(b)
    p, left = np.linalg.qr(a.T)
    return q, right @ left.T, p


def norm(change: Change) -> float:
    """Returns ‖ΔW‖ (Frobenius) of all layers together."""
    return float(np.sqrt(sum(np.sum(core(a, b)[1] ** 2) for a, b in change.values())))


def distance(change: Change, exact: Change) -> float:
    """Returns ‖change − exact‖ / ‖exact‖; 0 where both are nothing."""
    whole, apart = norm(exact), norm(weighted_sum([change, exact], [1.0, -1.0]))
    return apart / whole if whole else (float("inf") if apart else 0.0)


def cut(change: Change, rank: int) -> Change:
    """Returns the nearest change of that rank, layer by layer: the largest singular values with
    their vectors (Eckart and Young), the values shared between A and B. Where a layer has fewer,
    rows of zeros fill up."""
    found: Change = {}
    for layer, (a, b) in change.items():
        q, middle, p = core(a, b)
        u, values, v = np.linalg.svd(middle)
        kept = min(rank, len(values))
        root = np.sqrt(values[:kept])
        new_a, new_b = np.zeros((rank, a.shape[1])), np.zeros((b.shape[0], rank))
        new_a[:kept] = root[:, None] * (v[:kept] @ p.T)
        new_b[:, :kept] = (q @ u[:, :kept]) * root
        found[layer] = (new_a, new_b)
    return found


def as_adapter(change: Change, like: PeftAdapter) -> PeftAdapter:
    """Returns a change as an adapter whose further settings are those of `like`, and whose α / r
    too, if that makes α a whole number, so that a training that goes on takes steps of the same
    size; else α / r is 1."""
    rank = len(next(iter(change.values()))[0])
    alpha = like.scale * rank
    alpha = round(alpha) if abs(alpha - round(alpha)) < 1e-9 and round(alpha) >= 1 else rank
    arrays: dict[str, NDArray[np.float32]] = {}
    for layer, (a, b) in change.items():
        arrays[layer + A] = a.astype(np.float32)
        arrays[layer + B] = (b * (rank / alpha)).astype(np.float32)
    return PeftAdapter(arrays, {**like.config, "r": rank, "lora_alpha": alpha})
