"""The engine's deployment: ray.serve.llm's server, with adapters from a local folder and requests
as plain JSON.

`ask` takes the body of a chat completion that the ingress has checked and rebuilt, and yields
either one whole reply (a dict) or pieces of a stream (lists of "data: …" lines). What the engine
refuses is {"error": {status, code, message}} as the one item.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from pydantic import ValidationError
from ray import serve
from ray.serve.llm import LLMConfig, build_llm_deployment
from ray.serve.llm.deployment import LLMServer

from rarl.errors import UserError
from rarl.serving.adapters import AdapterReplaced, Snapshots
from rarl.serving.settings import DRAIN_SECONDS, ServiceConfig
from rarl.system.ray_internals import (
    OneAdapterAtATime,
    engine_in_one_process,
    loaded_adapter,
)

# Adapters that a replica remembers; max_loras and max_cpu_loras say how many vLLM holds in memory.
LOADED_ADAPTERS = 16
# The words of vLLM 0.29 by which the end of its engine process is known.
DIED = ("EngineCore", "EngineDead", "engine is dead")


class LocalAdapters:
    """What Ray's server downloads adapters with; here they are copied from the adapters' folder."""

    def __init__(
        self, folder: str, download_timeout_s: float | None = None, max_tries: int = 1
    ) -> None:
        self._snapshots = Snapshots(folder)
        self._loaded: dict[str, Any] = {}

    async def load_model_from_config(self, lora_model_id: str, llm_config: LLMConfig) -> Any:
        """Raises AdapterReplaced when the version is not there any more."""
        if lora_model_id not in self._loaded:
            folder = str(self._snapshots.take(lora_model_id))
            self._loaded[lora_model_id] = loaded_adapter(lora_model_id, folder)
        return self._loaded[lora_model_id]


class EngineServer(OneAdapterAtATime, LLMServer):
    """One vLLM engine per replica."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, llm_config: LLMConfig, adapters: str | None = None, **kwargs: Any
    ) -> None:
        if adapters is not None:
            kwargs["model_downloader"] = partial(LocalAdapters, adapters)
        # vLLM logs what it cannot process, and that may hold a question.
        logging.getLogger("vllm.entrypoints").setLevel(logging.CRITICAL)
        await super().__init__(llm_config, engine_cls=engine_in_one_process(), **kwargs)

    async def ask(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any] | list[str]]:
        """See above. `body["model"]` is the base's name, or an adapter's version, which is then
        also the request's multiplexed model id."""
        from ray.serve.llm.openai_api_models import ChatCompletionRequest

        try:
            async for item in await self.chat(ChatCompletionRequest(**body)):
                yield plain(item)
        except AdapterReplaced as error:
            yield refused(409, str(error), "adapter_replaced")
        except ValidationError as error:
            yield refused(400, str(error.errors(include_input=False)[0]["msg"]))
        except ValueError as error:
            status = 409 if serve.get_multiplexed_model_id() else 400
            yield refused(status, str(error).splitlines()[0])


def plain(item: Any) -> dict[str, Any] | list[str]:
    """Returns an engine's item without vLLM's types, which the ingress does not import. What the
    engine refuses comes as a reply with the one field `error`, of more than one class."""
    if isinstance(item, list):
        return [one if isinstance(one, str) else one.model_dump_json() for one in item]
    if isinstance(item, str):
        return [item]
    whole: dict[str, Any] = item.model_dump(mode="json")
    error = whole.get("error")
    return refused(int(error["code"]), error["message"]) if error else whole


def refused(status: int, message: str, code: str = "engine_refused") -> dict[str, Any]:
    """Returns an error for the ingress, since exceptions lose their type on the way."""
    if any(word in message for word in DIED):
        code = "engine_died"
    return {"error": {"status": status, "code": code, "message": message}}


def max_lora_rank(config: ServiceConfig) -> int:
    return int(config.llm.get("engine_kwargs", {}).get("max_lora_rank", 16))


def engine_config(config: ServiceConfig, model_path: str) -> LLMConfig:
    """Returns what the settings say, and what must be so for the replies to be the trained model's.
    Raises UserError for wrong keys of `llm`."""
    draining = {"graceful_shutdown_timeout_s": DRAIN_SECONDS}
    tree = {
        **config.llm,
        "model_loading_config": {"model_id": config.name, "model_source": model_path},
        "deployment_config": draining | config.llm.get("deployment_config", {}),
        "engine_kwargs": dict(config.llm.get("engine_kwargs", {})),
    }
    # Without the second vLLM samples with the temperature and penalties of the model's
    # generation_config.json.
    only_images = {"image": config.limits.images, "video": 0}
    tree["engine_kwargs"] |= {"limit_mm_per_prompt": only_images, "generation_config": "vllm"}
    if config.adapters is not None:
        tree["engine_kwargs"] |= {
            "enable_lora": True,
            "max_lora_rank": max_lora_rank(config),
            "worker_extension_cls": "rarl.rollout.vllm_cpu.WorkerExtension",
        }
        tree["lora_config"] = {"max_num_adapters_per_replica": LOADED_ADAPTERS}
    try:
        return LLMConfig.model_validate(tree)
    except ValueError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"inference application: llm: {reason}") from None


def build_engine(config: ServiceConfig, model_path: str) -> serve.Application:
    """Raises UserError for wrong keys of `llm`."""
    return build_llm_deployment(
        engine_config(config, model_path),
        name_prefix="Engine:",
        bind_kwargs={"adapters": config.adapters},
        deployment_cls=EngineServer,
    )
