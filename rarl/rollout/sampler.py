"""One vLLM engine in one Ray actor: samples answers, and swaps adapters under a fresh name and id.

vLLM keys its prefix cache by the adapter's name and its loaded weights by the adapter's id. Reusing
either makes it sample from stale keys or stale weights without a word, so both count up for as long
as the actor lives.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rarl.config import RolloutConfig
from rarl.distribution import BAN_BIAS, banned_token_ids
from rarl.rollout.engine import shared_arguments, start_engine
from rarl.schema import Rollout
from rarl.system.device import Device, Dtype
from rarl.system.processes import log_output_to

# The maxima that vLLM accepts.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
TOKEN_PIXELS = 32 * 32  # of one image token, in the known model in which it is the most


@dataclass(frozen=True)
class SamplerSettings:
    """`max_pixels` is the area of the largest image (None: any that fits a prompt), `images` is the
    largest number of images of one prompt. `cache_file`
    remembers how large a cache the engine found room for, for when it is started anew."""

    model_path: str
    device: Device
    dtype: Dtype
    lora_rank: int
    rollout: RolloutConfig
    log_path: str
    max_pixels: int | None = None
    images: int = 1
    cache_file: str | None = None


@dataclass(frozen=True)
class SampleRequest:
    """One prompt. `pixels` is (height, width, 3) uint8 of each image, in the order of their
    placeholders. Completion g of the group is drawn with `seed` + g."""

    prompt: str
    pixels: tuple[NDArray[np.uint8], ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class LikelihoodRequest:
    """One prompt and the replies whose likelihoods after it are asked."""

    prompt: str
    pixels: tuple[NDArray[np.uint8], ...]
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
        self.engine = start_engine(engine_arguments(settings), settings.device, settings.cache_file)
        # So many requests have work for all sequences, since each has one at least. Of all others
        # the engine need not hold the images.
        self.most_requests = settings.rollout.max_sequences
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
        engine, tokenizer = self.engine.llm_engine, self.engine.get_tokenizer()
        version = self.version if use_adapter else -1
        waiting, positions = iter(enumerate(requests)), dict[str, int]()
        try:
            while True:
                following = list(islice(waiting, self.most_requests - len(positions)))
                names = self.enqueue([one for _, one in following], sampling, use_adapter)
                positions |= zip(names, (position for position, _ in following), strict=True)
                if not positions:
                    return
                for output in engine.step():
                    if output.finished:
                        rollouts = to_rollouts(output, version, tokenizer)
                        yield positions.pop(output.request_id), rollouts
        # Whoever asked may be gone; the next one must not get what is left.
        finally:
            if engine.has_unfinished_requests():
                engine.abort_request(list(positions))

    def enqueue(
        self, requests: list[SampleRequest], sampling: SamplingSettings, use_adapter: bool
    ) -> list[str]:
        """Gives requests to the engine; returns the names that its outputs will bear."""
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
                # Text is made once, of the whole completion, and not after every token.
                detokenize=False,
                flat_logprobs=True,
            )
            for request in requests
        ]
        adapter = self.adapter_for(use_adapter)
        ids = self.engine.enqueue(inputs, parameters, use_tqdm=False, lora_request=adapter)
        # Inside, vLLM adds a random suffix to the id that its outputs bear.
        return [name.rsplit("-", 1)[0] for name in ids]

    def score(
        self, requests: list[LikelihoodRequest], use_adapter: bool = True
    ) -> list[list[list[float]]]:
        """Returns the log-probs (nats) of the tokens of each reply of each request after its
        prompt, at temperature 1, nothing banned."""
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
        scored = map(tail_logprobs, outputs, lengths)
        return [[next(scored) for _ in request.replies] for request in requests]

    def weigh(
        self, requests: list[LikelihoodRequest], use_adapter: bool = True
    ) -> list[list[float]]:
        """Returns the share of each reply among those of its request: the probabilities of the
        first token in which they differ, after what they have in common. One token is generated,
        which is far cheaper than to read every reply, and the prompt's cache is used. Replies that
        also have that token in common share its probability."""
        from vllm import SamplingParams

        tokenizer = self.engine.get_tokenizer()
        inputs: list[Any] = []
        parameters, firsts = [], []
        for request in requests:
            replies = [
                tokenizer(reply, add_special_tokens=False).input_ids for reply in request.replies
            ]
            common = common_length(replies)
            tokens = [ids[common] for ids in replies]
            firsts.append(tokens)
            prompt = tokenizer(request.prompt, add_special_tokens=False).input_ids
            inputs.append({"prompt_token_ids": [*prompt, *replies[0][:common]]})
            allowed = sorted(set(tokens))
            parameters.append(
                # What may not be drawn has no share in the processed log-probs.
                SamplingParams(max_tokens=1, allowed_token_ids=allowed, logprobs=len(allowed))
            )
        adapter = self.adapter_for(use_adapter)
        outputs = self.engine.generate(inputs, parameters, use_tqdm=False, lora_request=adapter)
        return [
            reply_shares(tokens, output.outputs[0].logprobs)
            for tokens, output in zip(firsts, outputs, strict=True)
        ]


def engine_arguments(settings: SamplerSettings) -> dict[str, Any]:
    """Returns the keyword arguments of `vllm.LLM`."""
    rollout = settings.rollout
    arguments = shared_arguments(
        settings.device,
        max_length=rollout.max_model_length,
        kv_cache_mib=rollout.kv_cache_mib,
        gpu_memory_share=rollout.gpu_memory_share,
        cache_file=settings.cache_file,
    ) | {
        "model": settings.model_path,
        "dtype": settings.dtype,
        "max_num_seqs": rollout.max_sequences,
        "limit_mm_per_prompt": {"image": settings.images, "video": 0},
        "enable_lora": True,
        "max_loras": 1,
        "max_cpu_loras": 2,
        "max_lora_rank": next(r for r in LORA_RANKS if r >= settings.lora_rank),
        # The log-prob of the distribution that was drawn from: after banned tokens and
        # temperature.
        "logprobs_mode": "processed_logprobs",
    }
    if settings.device == "cpu":
        return arguments
    largest = rollout.max_model_length * TOKEN_PIXELS
    return arguments | {
        # vLLM tries the largest image when it starts, and keeps the room: not one that never comes.
        "mm_processor_kwargs": {"max_pixels": min(settings.max_pixels or largest, largest)},
        # Logits of 16 and more are rounded to eighths in bfloat16. The policy's are not either.
        "hf_overrides": {"head_dtype": "float32"},
    }


def engine_input(prompt: str, pixels: Sequence[NDArray[np.uint8]]) -> dict[str, Any]:
    if not pixels:
        return {"prompt": prompt}
    images = [Image.fromarray(one) for one in pixels]
    return {"prompt": prompt, "multi_modal_data": {"image": images}}


def common_length(replies: list[list[int]]) -> int:
    """Returns how many tokens all begin with; each has at least one more."""
    for place, tokens in enumerate(zip(*replies, strict=False)):
        if len(set(tokens)) > 1:
            return place
    return min(map(len, replies)) - 1


def reply_shares(tokens: Sequence[int], found: Any) -> list[float]:
    """Returns the probability of each token as the first of a generated text, of which `found` are
    the log-probs; equal ones share theirs."""
    return [math.exp(found[0][token].logprob) / tokens.count(token) for token in tokens]


def tail_logprobs(output: Any, length: int) -> list[float]:
    """Returns those of the last `length` tokens of a scored prompt."""
    tail = list(zip(output.prompt_token_ids, output.prompt_logprobs, strict=True))[-length:]
    return [float(entry[token].logprob) for token, entry in tail]


def to_rollouts(output: Any, version: int, tokenizer: Any) -> list[Rollout]:
    rollouts = []
    for completion in sorted(output.outputs, key=lambda c: c.index):
        ids, found = list(completion.token_ids), completion.logprobs
        stopped = completion.finish_reason == "stop"
        rollout = Rollout(
            prompt_token_ids=list(output.prompt_token_ids),
            completion_token_ids=ids,
            # Flat lists of all positions; the sampled token is the first of each.
            sampler_logprobs=[found.logprobs[start] for start in found.start_indices],
            text=decode(tokenizer, ids[:-1] if stopped else ids),
            finish_reason="stop" if stopped else "length",
            adapter_version=version,
        )
        rollouts.append(rollout)
    return rollouts


def decode(tokenizer: Any, token_ids: list[int]) -> str:
    """Returns the text that vLLM makes of tokens one by one: without special tokens, and without a
    last character of which bytes are missing."""
    for size in range(len(token_ids), 0, -1):
        text: str = tokenizer.decode(
            token_ids[:size], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            return text
    return ""
