"""A base with its adapter as one model folder, which transformers and vLLM load by themselves; and
as GGUF, where llama.cpp's converter is installed."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from rarl.errors import UserError

CONVERTER = "convert_hf_to_gguf.py"
GGUF_TYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def write_model(base: str, adapter: Path, folder: Path, dtype: str) -> float:
    """Writes the model W + (α/r) B A with its processor into a folder that is there. It is computed
    in float32, and stored as `dtype`. Returns what the rounding to it loses, over what the adapter
    changes (Frobenius, all layers together): 0 in float32."""
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(model, str(adapter)).eval()
    lost = rounded_away(tuned, getattr(torch, dtype))
    whole: Any = tuned.merge_and_unload(safe_merge=True)
    whole.to(getattr(torch, dtype)).save_pretrained(folder)
    AutoProcessor.from_pretrained(base).save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes for its own user alone
    return lost


@torch.no_grad()
def rounded_away(tuned: PeftModel, dtype: torch.dtype) -> float:
    """Returns ‖round(W + ΔW) − (W + ΔW)‖ / ‖ΔW‖."""
    lost = changed = 0.0
    for layer in lora_layers(tuned):
        change = layer.get_delta_weight("default")
        whole = layer.get_base_layer().weight + change
        lost += float((whole.to(dtype).float() - whole).double().square().sum())
        changed += float(change.double().square().sum())
    return math.sqrt(lost / changed) if changed else 0.0


def lora_layers(tuned: PeftModel) -> Iterator[Any]:
    """Yields the layers that the adapter is on."""
    return (one for one in tuned.modules() if isinstance(one, LoraLayer))


def find_converter() -> str:
    """Returns llama.cpp's converter. Raises UserError where it is not on the PATH."""
    found = shutil.which(CONVERTER)
    if found is None:
        raise UserError(
            f"--gguf: llama.cpp's {CONVERTER} is not on the PATH; put the folder of its repository "
            "there, or leave --gguf out, since any llama.cpp converts the exported folder later"
        )
    return found


def write_gguf(converter: str, folder: Path, name: str, dtype: str) -> list[Path]:
    """Has llama.cpp's converter write the model of a folder, which is stored as `dtype`, into it,
    as one file for its language model and one for its vision tower, in the same format. Returns
    both. Raises UserError with the last line of what the converter says where it fails."""
    made, kept = [], ["--outtype", GGUF_TYPES[dtype]]
    for kind, further in (("model", []), ("mmproj", ["--mmproj"])):
        path = folder / f"{name}-{kind}.gguf"
        # With the Python of this process, which has PyTorch and transformers.
        command = [sys.executable, converter, str(folder), "--outfile", str(path), *kept, *further]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not path.is_file():
            said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            reason = said[-1].strip() if said else f"exit code {done.returncode}"
            raise UserError(f"--gguf: {converter} failed: {reason}; the folder {folder} is whole")
        made.append(path)
    return made
