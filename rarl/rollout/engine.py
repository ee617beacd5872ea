"""A vLLM engine in this process, as sampler and judge have one: what it is given on its device, and
how much cache it gets when it is started anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rarl.errors import UserError
from rarl.files import write_text
from rarl.rollout.vllm_cpu import use_own_product
from rarl.system.device import ENVIRONMENTS, Device
from rarl.system.imports import quick_imports

BATCHED_TOKENS = 8192  # that a GPU's engine takes at once at least; it tries so many when it starts
RESTART_SHARE = 0.01  # of the card, which must be free for an engine whose cache has its size


def start_engine(arguments: dict[str, Any], device: Device, cache_file: str | None) -> Any:
    """Returns the engine of these keyword arguments of `vllm.LLM`. `cache_file` remembers how large
    a cache it found room for. Raises UserError where vLLM is not for the device."""
    with quick_imports():
        from vllm import LLM
        from vllm.platforms import current_platform

    require_platform(device, current_platform.device_type)
    if device == "cpu":
        use_own_product()
    engine = LLM(**arguments)
    if cache_file is not None:
        core: Any = engine.llm_engine.engine_core
        size = core.engine_core.available_gpu_memory_for_kv_cache
        write_text(Path(cache_file), str(size))
    return engine


def require_platform(wanted: Device, found: str) -> None:
    """Raises UserError where vLLM, which chooses its platform by its build and by the cards that
    NVIDIA's library finds, has not chosen the configuration's device."""
    if found != wanted:
        raise UserError(
            f"device={wanted}, but vLLM finds the platform '{found or 'none'}' here: {ENVIRONMENTS}"
        )


def shared_arguments(
    device: Device,
    *,
    max_length: int,
    kv_cache_mib: int,
    gpu_memory_share: float,
    cache_file: str | None,
) -> dict[str, Any]:
    """Returns the keyword arguments of `vllm.LLM` that every engine has on this device.
    `max_length` is in tokens; `kv_cache_mib` counts on a CPU, `gpu_memory_share` on a GPU."""
    common = {"max_model_len": max_length, "seed": 0, "disable_log_stats": True}
    found = found_cache_size(cache_file)
    if device == "cpu":
        return common | {
            "kv_cache_memory_bytes": found or kv_cache_mib << 20,
            "enforce_eager": True,
            # The G completions of a group share the prompt's whole blocks; the CPU build's
            # default of 128 tokens is longer than many prompts.
            "block_size": 32,
            # A prompt in pieces makes vLLM rewind the random generator of its request, which
            # torch's CPU generators cannot do ("CPU Generator does not use offset").
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(4096, 8 * max_length),
        }
    return common | {
        # An engine that is started anew beside a trainer must not measure: it would take the
        # trainer's memory for its own, and abort where some is given back meanwhile.
        "gpu_memory_utilization": RESTART_SHARE if found else gpu_memory_share,
        "kv_cache_memory_bytes": found,
        "max_num_batched_tokens": max(BATCHED_TOKENS, max_length),
    }


def found_cache_size(cache_file: str | None) -> int | None:
    """Returns the bytes of the cache that this engine had before; None at its first start."""
    if cache_file is None or not Path(cache_file).exists():
        return None
    return int(Path(cache_file).read_text())
