"""A checked request → the engine's reply: the model's name looked up, images decoded and rebuilt,
one engine asked, another when it dies before it said anything."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ray.exceptions import RayActorError, RayError

from rarl.config import load_config
from rarl.distribution import BAN_BIAS, banned_token_ids
from rarl.errors import UserError
from rarl.prompts import Family, evaluation_prompts, read_families
from rarl.serving.adapters import Adapter, AdapterFolder
from rarl.serving.engine_words import DIED, REPLACED
from rarl.serving.images import data_url, decode, fit, read_bytes
from rarl.serving.metrics import Metrics
from rarl.serving.refusals import Refusal
from rarl.serving.requests import ChatRequest, ImagePart, TextPart, check_texts
from rarl.serving.settings import ServiceConfig

ENGINES_OWN = re.compile(r',"system_fingerprint":(null|"[^"\\]*")')
# a replica may die, or an adapter be replaced, between our looking it up and the engine's
ATTEMPTS = 4


@dataclass(frozen=True)
class Model:
    """What a request asks: the base (`adapter` None), or an adapter as it was when the request
    came."""

    name: str
    version: str
    adapter: Adapter | None
    family: Family  # how it was trained to be asked
    max_pixels: int | None


class Engines:
    """The engine deployment as the ingress sees it."""

    def __init__(
        self, config: ServiceConfig, model_path: str, max_rank: int, handle: Any, metrics: Metrics
    ) -> None:
        self.config, self.model_path, self.handle, self.metrics = (
            config,
            model_path,
            handle,
            metrics,
        )
        self.adapters = AdapterFolder(config.adapters, config.model, max_rank)
        self.decoding = asyncio.Semaphore(config.limits.decoding)

    @cached_property
    def processor(self) -> Any:
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(self.model_path)

    @cached_property
    def banned(self) -> dict[str, float]:
        """Vision tokens, which the model must not write."""
        return {str(token): BAN_BIAS for token in banned_token_ids(self.processor.tokenizer)}

    def model(self, name: str | None) -> Model:
        """Raises Refusal for one that there is not."""
        name = name or self.config.default or self.config.name
        if name == self.config.name:
            family = read_families()[self.config.prompt]
            return Model(name, name, None, family, self.config.max_pixels)
        adapter = self.adapters.find(name)
        family, max_pixels = self._as_trained(adapter)
        return Model(name, adapter.version, adapter, family, max_pixels)

    def _as_trained(self, adapter: Adapter) -> tuple[Family, int | None]:
        """The prompt that the adapter's run is measured with, and its bound on images."""
        if adapter.run is None:
            return read_families()[self.config.prompt], self.config.max_pixels
        try:
            run = load_config(adapter.run / "config.yaml")
            kept = adapter.run / "prompts.yaml"  # its own wordings, as they were
            own = run.prompts.model_copy(update={"templates": str(kept)} if kept.is_file() else {})
            family = evaluation_prompts(own).families[own.eval]
        except UserError:
            raise Refusal(
                409,
                "adapter_unreadable",
                f"adapter '{adapter.name}': its run's config.yaml cannot be read",
            ) from None
        bounds = [one for one in (run.data.max_pixels, self.config.max_pixels) if one is not None]
        return family, min(bounds, default=None)

    async def image(self, text: str, max_pixels: int | None, param: str, bare: bool = False) -> str:
        """The image as the engine gets it: a fresh PNG in a data: URL. Raises Refusal."""
        limits = self.config.limits

        def rebuild() -> str:
            data, kind = read_bytes(text, limits, param, bare)
            return data_url(
                fit(decode(data, kind, limits, param), self.processor.image_processor, max_pixels)
            )

        async with self.decoding:
            return await asyncio.to_thread(rebuild)

    async def chat(self, request: ChatRequest) -> AsyncIterator[dict[str, Any] | list[str]]:
        """As `ask`. Raises Refusal."""
        limits = self.config.limits
        if request.n > limits.replies:
            raise Refusal(
                400, "invalid_value", f"n: at most {limits.replies} replies to one request", "n"
            )
        model = self.model(request.model)
        body = request.model_dump(exclude_none=True, by_alias=True, exclude={"messages", "user"})
        body["max_completion_tokens"] = request.tokens(limits)
        body.pop("max_tokens", None)
        if not request.logprobs:
            body.pop("top_logprobs", None)
        if not request.stream:
            body.pop("stream_options", None)
        body["messages"] = await self._messages(request, model)
        async for item in self.ask(model, body):
            yield item

    async def _messages(self, request: ChatRequest, model: Model) -> list[dict[str, Any]]:
        """The messages with their images rebuilt. Raises Refusal."""
        check_texts(list(texts_of(request)), self.config.limits, "messages")
        images = [
            part for message in request.messages for part in parts_of(message.content, ImagePart)
        ]
        if len(images) > 1:
            raise Refusal(400, "too_many_images", "messages: one image in one request", "messages")
        messages = [message.model_dump() for message in request.messages]
        for message in messages:
            for part in message["content"] if isinstance(message["content"], list) else []:
                if part["type"] == "image_url":
                    url = await self.image(part["image_url"]["url"], model.max_pixels, "image_url")
                    part["image_url"] = {"url": url}
        return messages

    async def ask(
        self, model: Model, body: dict[str, Any]
    ) -> AsyncIterator[dict[str, Any] | list[str]]:
        """One whole reply (a dict) or a stream's pieces (lists of "data: …" lines). Raises Refusal,
        for an engine that dies too, once something was said; before that another one is asked."""
        body = {**body, "logit_bias": self.banned}
        for attempt in range(1, ATTEMPTS + 1):
            stream = self._request(model, body)
            said = False
            try:
                async for item in stream:
                    said = True
                    yield item
                return
            except (RayActorError, EngineDied):
                if said or attempt == ATTEMPTS:
                    raise Refusal(
                        503, "engine_died", "the engine stopped; send it again", retry_after=5
                    ) from None
            except AdapterReplaced:
                if attempt == ATTEMPTS:
                    raise Refusal(
                        409, "adapter_replaced", f"adapter '{model.name}' keeps being replaced"
                    ) from None
                model = self.model(model.name)
            except RayError:
                raise Refusal(
                    500, "engine_failed", "the engine failed to answer this request"
                ) from None

    async def _request(
        self, model: Model, body: dict[str, Any]
    ) -> AsyncIterator[dict[str, Any] | list[str]]:
        options = {"multiplexed_model_id": model.version} if model.adapter else {}
        handle = self.handle.options(stream=True, **options)
        async for item in handle.ask.remote({**body, "model": model.version}):
            if isinstance(item, dict):
                raise_refused(item)
                item = renamed(item, model)
                self.metrics.tokens(
                    model.name, (item.get("usage") or {}).get("completion_tokens", 0)
                )
            else:
                item = [renamed_line(line, model) for line in item]
            yield item


class EngineDied(Exception):
    """The replica is there, and its engine is not."""


class AdapterReplaced(Exception):
    """The version that was asked is not there any more."""


def raise_refused(item: dict[str, Any]) -> None:
    """Raises what an engine's {"error": …} means, where the item is one."""
    if "error" not in item:
        return
    status, message = int(item["error"]["code"]), str(item["error"]["message"])
    if any(word in message for word in DIED):
        raise EngineDied
    if status == 409 and any(word in message for word in REPLACED):
        raise AdapterReplaced
    if status == 409:
        raise Refusal(
            409,
            "adapter_unusable",
            "the engine cannot load this adapter; is it for this base model?",
        )
    status = status if 400 <= status < 500 else 500
    raise Refusal(status, "engine_refused", message[:300])


def texts_of(request: ChatRequest) -> list[str]:
    texts = [m.content for m in request.messages if isinstance(m.content, str)]
    return texts + [part.text for m in request.messages for part in parts_of(m.content, TextPart)]


def parts_of(content: Any, kind: Any) -> list[Any]:
    return [part for part in content if isinstance(part, kind)] if isinstance(content, list) else []


def renamed(item: dict[str, Any], model: Model) -> dict[str, Any]:
    """Under the name that the client knows; which version it was is in `system_fingerprint`."""
    return {**item, "model": model.name, "system_fingerprint": model.version}


def renamed_line(line: str, model: Model) -> str:
    """The same in a stream's event. Within a JSON text every quote is escaped, so these can only be
    the keys."""
    given = '"model":' + json.dumps(model.version)
    return ENGINES_OWN.sub("", line).replace(
        given,
        f'"model":{json.dumps(model.name)},"system_fingerprint":{json.dumps(model.version)}',
        1,
    )
