"""Reading an adapter's folder without the model it belongs to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_adapter(folder: Path) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """Tensors and configuration of a PEFT folder, as `adapter_arrays` and `adapter_config` give
    them."""
    # torch: seconds, and adapters may be in bfloat16, which NumPy lacks
    from safetensors.torch import load_file

    tensors = {
        name: tensor.float().numpy()
        for name, tensor in load_file(folder / "adapter_model.safetensors").items()
    }
    return tensors, json.loads((folder / "adapter_config.json").read_text())
