"""The policy: a frozen Qwen2-VL with a LoRA adapter on its language model."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from rarl.grpo.vision import use_patch_projection

# The language model's linear layers alone: the update computes vision features once, without
# gradient. vLLM could serve an adapter on the vision tower.
TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def load_policy(
    model_path: str, dtype: str, device: str, rank: int, alpha: int, seed: int
) -> PeftModel:
    """Base weights in `dtype`, adapter weights in float32; only the adapter has gradients.

    The B matrices start at zero, so the fresh adapter changes nothing; the A matrices depend on
    `seed` alone.
    """
    model = AutoModelForImageTextToText.from_pretrained(model_path, dtype=getattr(torch, dtype))
    use_patch_projection(model)
    torch.manual_seed(seed)
    adapter = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM"
    )
    policy = get_peft_model(model, adapter)
    policy.to(device).train()
    return policy


def adapter_parameters(policy: PeftModel) -> list[torch.nn.Parameter]:
    return [p for p in policy.parameters() if p.requires_grad]


def adapter_arrays(policy: PeftModel) -> dict[str, NDArray[np.float32]]:
    """The adapter under PEFT's own file names, as float32 arrays of their own memory."""
    state = get_peft_model_state_dict(policy)
    return {name: tensor.detach().float().cpu().numpy().copy() for name, tensor in state.items()}


def adapter_config(policy: PeftModel) -> dict[str, Any]:
    """`adapter_config.json` as PEFT writes it."""
    config: dict[str, Any] = policy.peft_config["default"].to_dict()
    return {
        key: sorted(value) if isinstance(value, set) else value for key, value in config.items()
    }


def save_adapter(policy: PeftModel, folder: Path) -> None:
    """A standard PEFT folder: `PeftModel.from_pretrained(base, folder)` loads it. Raises
    OSError."""
    try:
        policy.save_pretrained(folder)
    except SafetensorError as error:  # the disk's fault or not, it says so in its text alone
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error


def load_adapter(policy: PeftModel, folder: Path) -> None:
    """Restores weights that `save_adapter` wrote into a policy of the same shape."""
    set_peft_model_state_dict(policy, load_file(folder / "adapter_model.safetensors"))


@contextmanager
def other_adapter(policy: PeftModel, arrays: dict[str, NDArray[np.float32]]) -> Iterator[None]:
    """Inside, the policy has this adapter (as `adapter_arrays` gives it); afterwards its own again,
    bit for bit."""
    own = adapter_arrays(policy)
    set_arrays(policy, arrays)
    try:
        yield
    finally:
        set_arrays(policy, own)


def set_arrays(policy: PeftModel, arrays: dict[str, NDArray[np.float32]]) -> None:
    set_peft_model_state_dict(
        policy, {name: torch.from_numpy(array) for name, array in arrays.items()}
    )
