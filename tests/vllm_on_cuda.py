"""vLLM's configuration of a sampler's engine as it is made on a card that is not here.

    python -m tests.vllm_on_cuda CAPABILITY GIB SETTINGS

SETTINGS is a file with pickled `SamplerSettings`. The platform is vLLM's own for CUDA, told what
the driver would say; stand-ins take the place of compiled modules that the CPU build lacks, of
which nothing is called. Prints JSON, for one engine as the sampler makes it and one without a bound
of the image's size.
"""

from __future__ import annotations

import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

from rarl.rollout.sampler import SamplerSettings, engine_arguments

COMPILED = (
    "vllm._C_stable_libtorch",
    "vllm._moe_C_stable_libtorch",
    "vllm._qutlass_C",
    "vllm.vllm_flash_attn",
    "vllm.vllm_flash_attn.flash_attn_interface",
    "vllm.vllm_flash_attn.layers",
    "vllm.vllm_flash_attn.layers.rotary",
)


class Absent(types.ModuleType):
    """Stands for a compiled module."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments, **named: True


def pretend(capability: tuple[int, int], gib: float) -> None:
    """Has vLLM take this process's platform for CUDA with such a card."""
    sys.modules.update({name: Absent(name) for name in COMPILED})
    import torch

    torch.set_num_threads(1)
    import vllm.config.vllm
    import vllm.platforms
    import vllm.triton_utils
    import vllm.triton_utils.importing
    from vllm.platforms.cuda import CudaPlatformBase
    from vllm.platforms.interface import DeviceCapability

    class Card(CudaPlatformBase):
        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> Any:
            return DeviceCapability(*capability)

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return "NVIDIA card"

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            return int(gib * 2**30)

        @classmethod
        def device_count(cls) -> int:
            return 1

        @classmethod
        def is_pin_memory_available(cls) -> bool:
            return True

    vllm.platforms._current_platform = Card()  # type: ignore[assignment]
    # Triton is a part of CUDA's PyTorch.
    for module in (vllm.triton_utils.importing, vllm.triton_utils, vllm.config.vllm):
        module.HAS_TRITON = True  # type: ignore[attr-defined]


def described(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns what vLLM makes of an engine's arguments."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.encoder_budget import MultiModalBudget
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext

    config = EngineArgs(**arguments).create_engine_config(UsageContext.LLM_CLASS)
    # The first that vLLM's worker does on its card.
    current_platform.check_if_supports_dtype(config.model_config.dtype)  # type: ignore[arg-type]
    budget = MultiModalBudget(config, MULTIMODAL_REGISTRY, enable_cache=False)
    graphs = config.compilation_config
    assert config.lora_config is not None
    return {
        "platform": current_platform.device_type,
        "v2_runner": config.use_v2_model_runner,
        "chunked_prefill": config.scheduler_config.enable_chunked_prefill,
        "batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "graphs": str(graphs.cudagraph_mode),
        "largest_graph": max(graphs.cudagraph_capture_sizes),
        "head_dtype": str(config.model_config.head_dtype),
        "lora_dtype": str(config.lora_config.lora_dtype),
        "cache_bytes": config.cache_config.kv_cache_memory_bytes,
        "share": config.cache_config.gpu_memory_utilization,
        "image_tokens": dict(budget.mm_max_toks_per_item)["image"],
        "encoder_tokens": budget.get_encoder_budget(),
        "attention": attention_backends(),
    }


def attention_backends() -> list[str]:
    """Returns the names of the attention kernels that suit the 2B model, the best first."""
    import torch
    from vllm.platforms import current_platform
    from vllm.v1.attention.selector import AttentionSelectorConfig

    unset: dict[str, Any] = dict.fromkeys(AttentionSelectorConfig._fields, False)
    wanted = unset | {
        "head_size": 128,
        "dtype": torch.bfloat16,
        "kv_cache_dtype": "auto",
        "block_size": 16,
        "attn_type": "decoder",
    }
    capability = current_platform.get_device_capability()
    found, _ = current_platform.get_valid_backends(capability, AttentionSelectorConfig(**wanted))
    return [str(one.backend.name) for one in found]


def main(capability: str, gib: str, settings_file: str) -> None:
    major, minor = map(int, capability.split("."))
    pretend((major, minor), float(gib))
    settings: SamplerSettings = pickle.loads(Path(settings_file).read_bytes())
    arguments = engine_arguments(settings)
    unbounded = {k: v for k, v in arguments.items() if k != "mm_processor_kwargs"}
    print(json.dumps([described(arguments), described(unbounded)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
