"""One vLLM engine in one Ray actor: samples answers, and swaps adapters under a fresh name and id.

vLLM keys its prefix cache by the adapter's name and its loaded weights by the adapter's id. Reusing
either makes it sample from stale keys or stale weights without a word, so both count up for as long
as the actor lives.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rarl.config import RolloutConfig
from rarl.distribution import BAN_BIAS, banned_token_ids
from rarl.rollout.vllm_cpu import use_own_operators
from rarl.schema import Rollout
from rarl.system.imports import quick_imports
from rarl.system.processes import log_output_to

# The maxima that vLLM accepts.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class SamplerSettings:
    model_path: str
    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]
    lora_rank: int
    rollout: RolloutConfig
    log_path: str
    max_sequences: int = 128


@dataclass(frozen=True)
class SampleRequest:
    """One prompt. `pixels` is (height, width, 3) uint8; None: it has no image. Completion g of the
    group is drawn with `seed` + g."""

    prompt: str
    pixels: NDArray[np.uint8] | None
    seed: int = 0


@dataclass(frozen=True)
class ScoreRequest:
    """One prompt and the replies whose likelihood after it is asked."""

    prompt: str
    pixels: NDArray[np.uint8] | None
    replies: list[str]


@dataclass(frozen=True)
class SamplingSettings:
    """`temperature` 0 is greedy."""

    group_size: int
    temperature: float
    max_tokens: int


class NotPublished(RuntimeError):
    """The engine was started anew, and lacks the adapter that it is to sample with."""


class Sampler:
    """The actor's class. Not thread-safe, and need not be: Ray calls one method at a time."""

    def __init__(self, settings: SamplerSettings) -> None:
        log_output_to(Path(settings.log_path))
        rollout = settings.rollout
        self.engine = start_engine(
            settings.model_path,
            settings.device,
            kv_cache_mib=rollout.kv_cache_mib,
            gpu_memory_share=rollout.gpu_memory_share,
            max_model_len=rollout.max_model_length,
            dtype=settings.dtype,
            max_num_seqs=settings.max_sequences,
            limit_mm_per_prompt={"image": 1, "video": 0},
            enable_lora=True,
            max_loras=1,
            max_cpu_loras=2,
            max_lora_rank=next(r for r in LORA_RANKS if r >= settings.lora_rank),
            # The log-prob of the distribution that was drawn from: after banned tokens and
            # temperature.
            logprobs_mode="processed_logprobs",
        )
        self.banned = banned_token_ids(self.engine.get_tokenizer())
        self.adapter: Any = None
        self.version, self.swaps = -1, 0

    def ready(self) -> bool:
        """Returns once the engine is up."""
        return True

    def banned_token_ids(self) -> list[int]:
        return self.banned

    def load_adapter(
        self, version: int, tensors: Mapping[str, NDArray[Any]], peft_config: Mapping[str, Any]
    ) -> int:
        """Replaces the current adapter (float32 arrays under PEFT's own names); returns the bytes
        of the tensors."""
        import torch
        from safetensors.torch import save_file
        from vllm.lora.request import LoRARequest

        self.swaps += 1
        restored = {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}
        # vLLM reads adapters from files only, and keeps what it has read. In memory they cost no
        # disk; None is the default temporary folder.
        place = "/dev/shm" if Path("/dev/shm").is_dir() else None
        with tempfile.TemporaryDirectory(prefix="rarl-adapter-", dir=place) as folder:
            save_file(restored, f"{folder}/adapter_model.safetensors")
            Path(folder, "adapter_config.json").write_text(json.dumps(dict(peft_config)))
            fresh = LoRARequest(f"policy-v{version}-swap{self.swaps}", self.swaps, folder)
            if not self.engine.llm_engine.add_lora(fresh):
                raise RuntimeError(f"vLLM refused adapter version {version}")
        if self.adapter is not None:
            self.engine.llm_engine.remove_lora(self.adapter.lora_int_id)
        self.adapter, self.version = fresh, version
        return sum(tensor.nbytes for tensor in restored.values())

    def adapter_for(self, use_adapter: bool) -> Any:
        """Returns None for the base model. Raises NotPublished."""
        if use_adapter and self.adapter is None:
            raise NotPublished("no adapter was loaded since this engine started")
        return self.adapter if use_adapter else None

    def generate(
        self, requests: list[SampleRequest], sampling: SamplingSettings, use_adapter: bool = True
    ) -> Iterator[tuple[int, list[Rollout]]]:
        """Yields the `group_size` rollouts of each request, with the request's position, as soon
        as the group is complete."""
        from vllm import SamplingParams

        inputs: list[Any] = [engine_input(one.prompt, one.pixels) for one in requests]
        parameters = [
            SamplingParams(
                n=sampling.group_size,
                temperature=sampling.temperature,
                seed=request.seed if sampling.temperature > 0 else None,
                max_tokens=sampling.max_tokens,
                logprobs=0,
                logit_bias=dict.fromkeys(self.banned, BAN_BIAS),
            )
            for request in requests
        ]
        adapter = self.adapter_for(use_adapter)
        version = self.version if use_adapter else -1
        ids = self.engine.enqueue(inputs, parameters, use_tqdm=False, lora_request=adapter)
        # Inside, vLLM adds a random suffix to the id that its outputs bear.
        positions = {name.rsplit("-", 1)[0]: position for position, name in enumerate(ids)}
        try:
            while self.engine.llm_engine.has_unfinished_requests():
                for output in self.engine.llm_engine.step():
                    if output.finished:
                        yield positions[output.request_id], to_rollouts(output, version)
        # Whoever asked may be gone; the next one must not get what is left.
        finally:
            if self.engine.llm_engine.has_unfinished_requests():
                self.engine.llm_engine.abort_request(list(positions))

    def score(self, requests: list[ScoreRequest], use_adapter: bool = True) -> list[list[float]]:
        """Returns the log-likelihood (nats) of each reply of each request after its prompt, at
        temperature 1, nothing banned."""
        from vllm import SamplingParams

        pairs = [(request, reply) for request in requests for reply in request.replies]
        inputs: list[Any] = [engine_input(one.prompt + reply, one.pixels) for one, reply in pairs]
        tokenizer = self.engine.get_tokenizer()
        lengths = [len(tokenizer(reply, add_special_tokens=False).input_ids) for _, reply in pairs]
        parameters = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False
        )
        adapter = self.adapter_for(use_adapter)
        outputs = self.engine.generate(inputs, parameters, use_tqdm=False, lora_request=adapter)
        sums = map(tail_logprob, outputs, lengths)
        return [[next(sums) for _ in request.replies] for request in requests]


def start_engine(
    model_path: str,
    device: Literal["cpu", "cuda"],
    *,
    kv_cache_mib: int,
    gpu_memory_share: float,
    max_model_len: int,
    **arguments: Any,
) -> Any:
    """Returns a vLLM engine in this process, with what every engine of a run needs on the device;
    `arguments` are vLLM's own."""
    with quick_imports():
        from vllm import LLM

    hardware: dict[str, Any] = {"gpu_memory_utilization": gpu_memory_share}
    if device == "cpu":
        use_own_operators()
        hardware = {
            "kv_cache_memory_bytes": kv_cache_mib << 20,
            "enforce_eager": True,
            # The G completions of a group share the prompt's whole blocks; the CPU build's
            # default of 128 tokens is longer than many prompts.
            "block_size": 32,
            # A prompt in pieces makes vLLM rewind the random generator of its request, which
            # torch's CPU generators cannot do ("CPU Generator does not use offset").
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(4096, 8 * max_model_len),
        }
    return LLM(
        model_path,
        max_model_len=max_model_len,
        seed=0,
        disable_log_stats=True,
        **hardware,
        **arguments,
    )


def engine_input(prompt: str, pixels: NDArray[np.uint8] | None) -> dict[str, Any]:
    if pixels is None:
        return {"prompt": prompt}
    return {"prompt": prompt, "multi_modal_data": {"image": Image.fromarray(pixels)}}


def tail_logprob(output: Any, length: int) -> float:
    """Returns the sum over the last `length` tokens of a scored prompt."""
    tail = list(zip(output.prompt_token_ids, output.prompt_logprobs, strict=True))[-length:]
    return float(sum(entry[token].logprob for token, entry in tail))


def to_rollouts(output: Any, version: int) -> list[Rollout]:
    rollouts = []
    for completion in sorted(output.outputs, key=lambda c: c.index):
        ids = list(completion.token_ids)
        entries = zip(ids, completion.logprobs, strict=True)
        rollout = Rollout(
            prompt_token_ids=list(output.prompt_token_ids),
            completion_token_ids=ids,
            sampler_logprobs=[entry[token].logprob for token, entry in entries],
            text=completion.text,
            finish_reason="stop" if completion.finish_reason == "stop" else "length",
            adapter_version=version,
        )
        rollouts.append(rollout)
    return rollouts
