"""One vLLM engine in one Ray actor that answers conversations by a JSON schema: the judge that
comes with a run. It is started, placed and ended as the samplers are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray

from rarl.rollout.engine import shared_arguments, start_engine
from rarl.rollout.pool import wait_for_engines
from rarl.system.device import Device
from rarl.system.placement import judge_resources
from rarl.system.processes import log_output_to, sampler_environment

# Tokens of instructions, image, texts and answer together; less where the model knows less.
MAX_LENGTH = 8192


@dataclass(frozen=True)
class ChatSettings:
    """`kv_cache_mib` counts on a CPU, `gpu_memory_share` on a GPU; `index` is the engine's among
    the run's. `cache_file` remembers how large a cache it found room for, for when it is started
    anew."""

    model_path: str
    device: Device
    image: bool
    max_sequences: int
    kv_cache_mib: int
    gpu_memory_share: float
    own_gpu: bool
    index: int
    log_path: str
    cache_file: str


@dataclass(frozen=True)
class ChatAnswer:
    """`text` is what the model wrote, or why the conversation was refused."""

    text: str
    finish_reason: Literal["stop", "length", "refused"]


class ChatEngine:
    """The actor's class. Any number of conversations may be under way; vLLM batches them."""

    def __init__(self, settings: ChatSettings) -> None:
        log_output_to(Path(settings.log_path))
        # vLLM's engine is for one thread, which works off what it is given in order.
        self.thread = ThreadPoolExecutor(1)
        self.engine = self.thread.submit(
            start_engine, chat_arguments(settings), settings.device, settings.cache_file
        ).result()
        self.outputs: dict[str, Any] = {}

    def ready(self) -> bool:
        """Returns once the engine is up."""
        return True

    async def answer(
        self, messages: list[dict[str, Any]], schema: dict[str, Any], max_tokens: int, seed: int
    ) -> ChatAnswer:
        """Returns the greedy answer to a conversation in OpenAI's form, held to a JSON schema.
        What is too long, or cannot be read, is refused."""
        try:
            name = await self.in_thread(lambda: self.enqueue(messages, schema, max_tokens, seed))
        except ValueError as error:
            return ChatAnswer(str(error), "refused")
        while name not in self.outputs:
            await self.in_thread(self.step)
        (completion,) = self.outputs.pop(name).outputs
        finish: Literal["stop", "length"] = "length"
        if completion.finish_reason == "stop":
            finish = "stop"
        return ChatAnswer(completion.text, finish)

    async def in_thread(self, work: Callable[[], Any]) -> Any:
        """Returns what `work` returns in the engine's thread."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, work)

    def enqueue(
        self, messages: list[dict[str, Any]], schema: dict[str, Any], max_tokens: int, seed: int
    ) -> str:
        """Returns the name under which the answer will be found. Raises ValueError."""
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            seed=seed,
            structured_outputs=StructuredOutputsParams(json=schema),
        )
        (name,) = self.engine.enqueue_chat([messages], parameters, use_tqdm=False)
        # Inside, vLLM adds a random suffix; its outputs bear the name without it.
        return str(name.rsplit("-", 1)[0])

    def step(self) -> None:
        """Makes one step for all conversations, unless another waiter's step has ended them."""
        if self.engine.llm_engine.has_unfinished_requests():
            for output in self.engine.llm_engine.step():
                if output.finished:
                    self.outputs[output.request_id] = output


def chat_arguments(settings: ChatSettings) -> dict[str, Any]:
    """Returns the keyword arguments of `vllm.LLM`."""
    from transformers import AutoConfig

    known = AutoConfig.from_pretrained(settings.model_path).get_text_config()
    return shared_arguments(
        settings.device,
        max_length=min(MAX_LENGTH, getattr(known, "max_position_embeddings", MAX_LENGTH)),
        kv_cache_mib=settings.kv_cache_mib,
        gpu_memory_share=settings.gpu_memory_share,
        cache_file=settings.cache_file,
    ) | {
        "model": settings.model_path,
        "dtype": "float32" if settings.device == "cpu" else "auto",
        "max_num_seqs": settings.max_sequences,
        "limit_mm_per_prompt": {"image": int(settings.image), "video": 0},
        # A schema allows white space between its parts, and a small model would write little else.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }


@contextmanager
def chat_engine(settings: ChatSettings) -> Iterator[Any]:
    """Inside, the actor is up or coming up; `wait_for_judge` waits for it. It ends with this
    process in any case."""
    Path(settings.cache_file).unlink(missing_ok=True)  # of an earlier start, beside other processes
    environment = {"env_vars": sampler_environment(settings.device, settings.index)}
    placed = judge_resources(settings.device, settings.own_gpu)
    options = {
        "num_cpus": placed["CPU"],
        "num_gpus": placed.get("GPU", 0),
        "runtime_env": environment,
        # An answer depends on the question alone: one that was lost is asked for again.
        "max_restarts": -1,
        "max_task_retries": -1,
    }
    actor = ray.remote(**options)(ChatEngine).remote(settings)
    try:
        yield actor
    finally:
        ray.kill(actor)


def wait_for_judge(actor: Any) -> None:
    """Returns when the engine is up. Raises UserError when it does not come up."""
    wait_for_engines([actor], "the judge's engine", "see judge.log in the run's logs")
