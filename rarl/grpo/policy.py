"""The policy: a frozen Qwen2-VL with a LoRA adapter on its language model. torch, PEFT and
transformers are imported inside, since processes without a policy read adapters too."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rarl.errors import UserError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

# The language model's linear layers alone: the update computes vision features once, without
# gradient. vLLM could serve an adapter on the vision tower.
TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def load_policy(
    model_path: str, dtype: str, device: str, rank: int, alpha: int, seed: int
) -> PeftModel:
    """Returns a policy with base weights in `dtype` and adapter weights in float32; only the
    adapter has gradients.

    The B matrices start at zero, so the fresh adapter changes nothing; the A matrices depend on
    `seed` alone.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    from rarl.grpo.forward import use_patch_projection

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
    """Returns the weights that are trained."""
    return [p for p in policy.parameters() if p.requires_grad]


def adapter_arrays(policy: PeftModel) -> dict[str, NDArray[np.float32]]:
    """Returns the adapter under PEFT's own file names, as float32 arrays of their own memory."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(policy)
    return {name: tensor.detach().float().cpu().numpy().copy() for name, tensor in state.items()}


def adapter_config(policy: PeftModel) -> dict[str, Any]:
    """Returns `adapter_config.json` as PEFT writes it."""
    config = policy.peft_config["default"].to_dict().items()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config}


def read_adapter(folder: Path) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """Returns tensors and configuration of a PEFT folder, as `adapter_arrays` and `adapter_config`
    give them, without the model that the adapter belongs to."""
    # Not safetensors.numpy: adapters may be in bfloat16, which NumPy lacks.
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    arrays = {name: tensor.float().numpy() for name, tensor in tensors.items()}
    return arrays, json.loads((folder / "adapter_config.json").read_text())


def save_adapter(policy: PeftModel, folder: Path) -> None:
    """Writes a standard PEFT folder: `PeftModel.from_pretrained(base, folder)` loads it. Raises
    OSError."""
    from safetensors import SafetensorError

    try:
        policy.save_pretrained(folder)
    except SafetensorError as error:
        # Whether it is the disk's fault is said in the text alone.
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error


def load_adapter(policy: PeftModel, folder: Path) -> None:
    """Restores weights that `save_adapter` wrote into a policy of the same shape."""
    set_arrays(policy, read_adapter(folder)[0])


@contextmanager
def other_adapter(policy: PeftModel, arrays: Mapping[str, NDArray[np.float32]]) -> Iterator[None]:
    """Inside, the policy has this adapter (as `adapter_arrays` gives it); afterwards its own again,
    bit for bit."""
    own = adapter_arrays(policy)
    set_arrays(policy, arrays)
    try:
        yield
    finally:
        set_arrays(policy, own)


def set_arrays(policy: PeftModel, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Gives the policy the weights that `adapter_arrays` returned. Raises UserError for weights of
    other layers, of which PEFT would load what fits and say nothing."""
    import torch
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    if odd := get_peft_model_state_dict(policy).keys() ^ arrays.keys():
        raise UserError(
            f"the adapter is on other layers than RARL's are on this model: only one has {min(odd)}"
        )
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    set_peft_model_state_dict(policy, tensors)
