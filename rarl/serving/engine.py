"""The engine's deployment: ray.serve.llm's server, with adapters from a local folder and requests
as plain JSON.

`ask` takes the body of a chat completion that the ingress has checked and rebuilt, and yields
either one whole reply (a dict) or pieces of a stream (lists of "data: …" lines). What the engine
refuses is {"error": {…}} as the one item.
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
from rarl.serving.adapters import Snapshots
from rarl.serving.settings import DRAIN_SECONDS, ServiceConfig
from rarl.system.ray_internals import OneAdapterAtATime, loaded_adapter

# that a replica remembers; vLLM holds as many in memory as max_loras and max_cpu_loras say
LOADED_ADAPTERS = 16


class LocalAdapters:
    """What Ray's server downloads adapters with; here they are copied from the adapters' folder."""

    def __init__(
        self, folder: str, download_timeout_s: float | None = None, max_tries: int = 1
    ) -> None:
        self._snapshots = Snapshots(folder)
        self._loaded: dict[str, Any] = {}

    async def load_model_from_config(self, lora_model_id: str, llm_config: LLMConfig) -> Any:
        """Raises UserError when the version is not there any more."""
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
        await super().__init__(llm_config, **kwargs)

    async def ask(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any] | list[str]]:
        """See above. `body["model"]` is the base's name, or an adapter's version, which is then
        also the request's multiplexed model id."""
        from ray.serve.llm.openai_api_models import ChatCompletionRequest, ErrorResponse

        try:
            stream = await self.chat(ChatCompletionRequest(**body))
            async for item in stream:
                yield (
                    refused(item.error.code, item.error.message)
                    if isinstance(item, ErrorResponse)
                    else plain(item)
                )
        except UserError as error:
            yield refused(409, str(error))
        except ValidationError as error:
            yield refused(400, str(error.errors(include_input=False)[0]["msg"]))
        except ValueError as error:
            yield refused(
                409 if serve.get_multiplexed_model_id() else 400, str(error).splitlines()[0]
            )

    async def ready(self) -> bool:
        """Returns when the engine is up and well; raises otherwise."""
        await self.check_health()
        return True


def plain(item: Any) -> dict[str, Any] | list[str]:
    """Without types of vLLM's, which the ingress does not import."""
    if isinstance(item, list):
        return [one if isinstance(one, str) else one.model_dump_json() for one in item]
    if isinstance(item, str):
        return [item]
    whole: dict[str, Any] = item.model_dump(mode="json", exclude_none=False)
    return whole


def refused(status: int, message: str) -> dict[str, Any]:
    return {"error": {"code": status, "message": message}}


def max_lora_rank(config: ServiceConfig) -> int:
    return int(config.llm.get("engine_kwargs", {}).get("max_lora_rank", 16))


def engine_config(config: ServiceConfig, model_path: str) -> LLMConfig:
    """What the settings say, and what must be so for the replies to be the trained model's."""
    engine = dict(config.llm.get("engine_kwargs", {}))
    engine |= {
        "limit_mm_per_prompt": {"image": 1, "video": 0},
        # Without it vLLM samples with the temperature and penalties of the model's
        # generation_config.json.
        "generation_config": "vllm",
    }
    deployment = {
        "graceful_shutdown_timeout_s": DRAIN_SECONDS,
        **config.llm.get("deployment_config", {}),
    }
    tree = {**config.llm, "engine_kwargs": engine, "deployment_config": deployment}
    if config.adapters is not None:
        engine |= {"enable_lora": True, "max_lora_rank": max_lora_rank(config)}
        engine["worker_extension_cls"] = "rarl.serving.cpu_lora.WorkerExtension"
        tree["lora_config"] = {"max_num_adapters_per_replica": LOADED_ADAPTERS}
    tree["model_loading_config"] = {"model_id": config.name, "model_source": model_path}
    try:
        made: LLMConfig = LLMConfig.model_validate(tree)
    except (ValidationError, ValueError) as error:
        raise UserError(
            f"inference application: llm: {' '.join(str(error).split())[:300]}"
        ) from None
    return made


def build_engine(config: ServiceConfig, model_path: str, adapters: str | None) -> serve.Application:
    """Raises UserError for wrong keys of `llm`."""
    application: serve.Application = build_llm_deployment(
        engine_config(config, model_path),
        name_prefix="Engine:",
        bind_kwargs={"adapters": adapters},
        deployment_cls=EngineServer,
    )
    return application
