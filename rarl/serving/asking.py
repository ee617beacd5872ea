"""A checked request → the engine's reply. The model's name is looked up, images are decoded and
rebuilt, one engine is asked, and another one when it dies before it said anything.

`Engines.chat` is `POST /v1/chat/completions`. `answer` is `POST /v1/answer`: one question about any
number of images → thinking, answer, and how far k samples agree on it.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError

from rarl.config import load_config
from rarl.distribution import BAN_BIAS, banned_token_ids
from rarl.errors import UserError
from rarl.evaluation.self_consistency import Sampled, vote
from rarl.judge.candidate import Candidate, ScoreReply, candidate_json
from rarl.prompts import LOOK, Family, evaluation_prompts
from rarl.replies.boxes import STYLES, family_of, read_boxes
from rarl.replies.tags import parse_reply
from rarl.replies.words import chosen_option
from rarl.schema import Frame
from rarl.serving.adapters import AdapterFolder, ServedAdapter
from rarl.serving.guard import Metrics
from rarl.serving.images import data_urls, read_images, shown_size
from rarl.serving.looking import Looked, look
from rarl.serving.questions import PosedQuestion, in_own_words, pose, turn_of
from rarl.serving.requests import (
    AnswerRequest,
    ChatRequest,
    NamedImage,
    Refusal,
    check_texts,
)
from rarl.serving.settings import ServiceConfig

# A replica may die, or an adapter be replaced, between our looking it up and the engine's.
ATTEMPTS = 4
JUDGE_SECONDS = 60.0
ENGINES_OWN = re.compile(r',"system_fingerprint":(null|"[^"\\]*")')
# What an engine gives: one whole reply (a dict), or a stream's pieces (lists of "data: …" lines).
Items = AsyncIterator[dict[str, Any] | list[str]]


@dataclass(frozen=True)
class AskedModel:
    """What a request asks: the base (`adapter` None), or an adapter as it was when the request
    came. `family` is how it was trained to be asked, `look` how it is asked where to look."""

    name: str
    version: str
    adapter: ServedAdapter | None
    family: Family
    look: Family
    max_pixels: int | None


class Engines:
    """The engine deployment as the ingress sees it."""

    def __init__(
        self, config: ServiceConfig, model_path: str, max_rank: int, handle: Any, metrics: Metrics
    ) -> None:
        self.config, self.model_path, self.started = config, model_path, int(time.time())
        self.handle, self.metrics = handle, metrics
        self.adapters = AdapterFolder(config.adapters, config.model, max_rank)
        self.decoding = asyncio.Semaphore(config.limits.decoding)

    @cached_property
    def processor(self) -> Any:
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(self.model_path)

    @cached_property
    def banned(self) -> dict[str, float]:
        """The bias of vision tokens, which the model must not write."""
        return {str(token): BAN_BIAS for token in banned_token_ids(self.processor.tokenizer)}

    def model(self, name: str | None) -> AskedModel:
        """Raises Refusal for a model that there is not."""
        if name is None:
            name = self.config.default or self.config.name
        families, most = self.config.families, self.config.max_pixels
        family, look = families[self.config.prompt], families[LOOK]
        if name == self.config.name:
            return AskedModel(name, name, None, family, look, most)
        adapter = self.adapters.find(name)
        if adapter.run is None:
            return AskedModel(name, adapter.version, adapter, family, look, most)
        # As the adapter's run is measured: its prompt, and its bound on images.
        try:
            run = load_config(adapter.run / "config.yaml")
            # The run's own wordings, as they were.
            kept = adapter.run / "prompts.yaml"
            own = run.prompts.model_copy(update={"templates": str(kept)} if kept.is_file() else {})
            families = evaluation_prompts(own).families
        except UserError:
            raise Refusal("run_unreadable", name=name) from None
        bounds = [one for one in (run.data.max_pixels, most) if one is not None]
        family, most = families[own.eval], min(bounds, default=None)
        return AskedModel(name, adapter.version, adapter, family, families[LOOK], most)

    async def images(
        self, named: Sequence[NamedImage], max_pixels: int | None, bare: bool = False
    ) -> list[str]:
        """Returns a request's images as the engine gets them: fresh PNGs in data: URLs, at the
        sizes at which one question shows them. Raises Refusal."""
        limits = self.config.limits
        if len(named) > limits.images:
            first = named[limits.images].param
            raise Refusal("too_many_images", first, number=len(named), most=limits.images)
        if not named:
            return []

        def rebuild() -> list[str]:
            images = read_images(named, limits, bare)
            return data_urls(named, images, self.processor.image_processor, max_pixels)

        async with self.decoding:
            return await asyncio.to_thread(rebuild)

    async def chat(self, request: ChatRequest) -> Items:
        """Yields as `ask` does. Raises Refusal."""
        limits = self.config.limits
        if request.n > limits.replies:
            reason = f"at most {limits.replies} replies to one request"
            raise Refusal("invalid_value", "n", reason=reason)
        model = self.model(request.model)
        tokens = request.max_completion_tokens or request.max_tokens or limits.completion_tokens
        if tokens > limits.completion_tokens:
            reason = f"at most {limits.completion_tokens} tokens in one reply"
            raise Refusal("invalid_value", "max_tokens", reason=reason)
        parts = request.parts()
        texts = [part.text for part in parts.values() if part.text is not None]
        check_texts(texts, limits, "messages")
        if request.prompt == "auto":
            request.messages = [in_own_words(request.messages, model.family)]
        images = {place: part.image_url for place, part in parts.items() if part.image_url}
        named = [NamedImage(f"{place}.image_url", one.url) for place, one in images.items()]
        urls = await self.images(named, model.max_pixels)
        for image, url in zip(images.values(), urls, strict=True):
            image.url, image.detail = url, None
        unused = {"max_tokens", "prompt", "user"} | (
            set() if request.logprobs else {"top_logprobs"}
        )
        unused |= set() if request.stream else {"stream_options"}
        body = request.model_dump(exclude_none=True, by_alias=True, exclude=unused)
        async for item in self.ask(model, {**body, "max_completion_tokens": tokens}):
            yield item

    async def ask(self, model: AskedModel, body: dict[str, Any]) -> Items:
        """Yields the reply, see Items. As long as nothing was said, another engine is asked when
        one dies, and an adapter's next version when it is replaced. Raises Refusal."""
        said = False
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async for item in self._request(model, body):
                    said = True
                    yield item
                return
            except RayActorError:
                refusal = Refusal("engine_died")
            except RayError:
                raise Refusal("engine_failed") from None
            except Refusal as raised:
                refusal = raised
            is_lasting = refusal.code not in ("engine_died", "adapter_replaced")
            if said or is_lasting or attempt == ATTEMPTS:
                raise refusal
            model = self.model(model.name)

    async def _request(self, model: AskedModel, body: dict[str, Any]) -> Items:
        options = {"multiplexed_model_id": model.version} if model.adapter else {}
        handle = self.handle.options(stream=True, **options)
        body = {**body, "logit_bias": self.banned, "model": model.version}
        async for item in handle.ask.remote(body):
            if isinstance(item, list):
                yield [renamed_line(line, model) for line in item]
            elif "error" in item:
                raise refusal_of(item["error"], model)
            else:
                tokens = (item.get("usage") or {}).get("completion_tokens", 0)
                self.metrics.tokens(model.name, tokens)
                # The client's own name; which version it was is in `system_fingerprint`.
                yield {**item, "model": model.name, "system_fingerprint": model.version}


def refusal_of(error: dict[str, Any], model: AskedModel) -> Refusal:
    """Returns what an engine's {status, code, message} is to the client."""
    if error["code"] != "engine_refused":  # it died, or the adapter was replaced
        return Refusal(error["code"], name=model.name)
    if error["status"] == 409:
        return Refusal("adapter_unusable")
    refusal = Refusal("engine_refused", reason=error["message"][:300])
    refusal.status = error["status"] if 400 <= error["status"] < 500 else 500
    return refusal


def renamed_line(line: str, model: AskedModel) -> str:
    """Puts the client's name and the version into a stream's event. Within a JSON text every quote
    is escaped, so what is replaced can only be the keys."""
    given, version = '"model":' + json.dumps(model.version), json.dumps(model.version)
    own = f'"model":{json.dumps(model.name)},"system_fingerprint":{version}'
    return ENGINES_OWN.sub("", line).replace(given, own, 1)


async def answer(engines: Engines, request: AnswerRequest) -> AsyncIterator[dict[str, Any]]:
    """Yields {"type": "delta", "text"} of the first sample as it is written, and last {"type":
    "result", …}. Raises Refusal, also where no sample holds an answer."""
    config, limits = engines.config, engines.config.limits
    samples = request.samples or config.samples
    if samples > limits.replies:
        raise Refusal("invalid_value", "samples", reason=f"at most {limits.replies}")
    labels = request.image_labels or []
    check_texts(labels, limits, "image_labels")
    texts = [request.question, *(request.options or []), *labels, request.reference or ""]
    check_texts(texts, limits, "question")
    model = engines.model(request.adapter)
    style = family_of(engines.processor)
    images = request.named_images()
    if request.boxes and request.options:
        raise Refusal("invalid_value", "options", reason="a question for boxes has none")
    if request.boxes and len(images) != 1:
        reason = f"they are of one image, and there are {len(images)}"
        raise Refusal("invalid_value", "boxes", reason=reason)
    if request.look and (request.boxes or len(images) != 1):
        reason = "a second look is at the only image of a question that does not ask for boxes"
        raise Refusal("invalid_value", "look", reason=reason)
    asked = STYLES[style].asked if request.boxes else ""
    question = pose(request.question, request.options, model.family, asked)
    if request.look:
        shown = await look(engines, model, request.question, request.options, images[0])
    else:
        urls = await engines.images(images, model.max_pixels, bare=True)
        shown = Looked(urls, labels or [""] * len(urls))
    replies, fingerprint = [""] * samples, model.version
    usage: dict[str, int] = {}
    body = {
        "messages": [turn_of(question.text, shown.labels, shown.urls)],
        "n": samples,
        # One sample is the likeliest reply; several are drawn as in training, so that their
        # agreement means something.
        "temperature": 1.0 if samples > 1 else 0.0,
        "max_completion_tokens": limits.completion_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"seed": request.seed} if request.seed is not None else {}),
    }
    async for line in lines_of(engines.ask(model, body)):
        fingerprint = line.get("system_fingerprint") or fingerprint
        usage = line.get("usage") or usage
        for choice in line.get("choices", ()):
            delta = choice["delta"].get("content") or ""
            replies[choice["index"]] += delta
            if choice["index"] == 0 and delta:
                yield {"type": "delta", "text": delta}
    engines.metrics.tokens(model.name, usage.get("completion_tokens", 0))
    frame = sent_frame(style, shown.urls[0]) if request.boxes else None
    result, reply = read_answer(replies, question, model, frame)
    if frame is not None:
        result["boxes"] = named_boxes(result["answer"], frame)
    result |= {"adapter": model.name, "version": fingerprint}
    if request.look:
        result["look"] = shown.told
    result["tokens"] = {
        key: sum(one.get(f"{key}_tokens", 0) for one in (usage, shown.usage))
        for key in ("prompt", "completion")
    }
    if request.reference is not None:
        candidate = Candidate(
            question=request.question,
            options=question.options,
            reference=request.reference,
            rationale=None,
            reply=reply,
            thinking=result["thinking"],
            answer=result["answer"],
        )
        result["verdict"] = await judged(config.judge, candidate)
    yield {"type": "result", **result}


def sent_frame(family: str, url: str) -> Frame:
    """Returns how a model of the family writes places in the image of a data: URL, in shares of the
    image's sides."""
    return Frame(family, 1, 1, *shown_size(url))


def named_boxes(answer: str, frame: Frame) -> list[dict[str, Any]] | None:
    """Returns the boxes of an answer with corners in the frame's unit; None for what is no
    boxes."""
    found = read_boxes(answer, frame)
    if found is None:
        return None
    return [asdict(one) for one in found if all(map(math.isfinite, one.corners))]


async def lines_of(stream: Items) -> AsyncIterator[dict[str, Any]]:
    """Yields the events of a stream, parsed. Raises Refusal for one that is an error."""
    async for item in stream:
        assert isinstance(item, list), "a stream was asked for"
        for event in "".join(item).split("\n\n"):
            text = event.removeprefix("data: ").strip()
            if text and text != "[DONE]":
                line: dict[str, Any] = json.loads(text)
                if "error" in line:
                    raise Refusal("engine_failed_midway")
                yield line


def read_answer(
    replies: list[str], question: PosedQuestion, model: AskedModel, frame: Frame | None = None
) -> tuple[dict[str, Any], str]:
    """Returns the majority's answer with the thinking of the first sample that gave it, and that
    sample. What is none of the options has no vote beside what is one. With a `frame` the answers
    are boxes. Raises Refusal without any answer."""
    parsed = [parse_reply(text, model.family.form) for text in replies]
    answers = [one.answer or None for one in parsed]
    if options := question.options:
        offered = [
            one if one and chosen_option(one, options) is not None else None for one in answers
        ]
        answers = offered if any(offered) else answers
    kind = "open" if frame is None else "boxes"
    asked = Sampled(answers, question.reference, question.options, kind, frame=frame)
    voted = vote(asked)
    if voted.answer is None:
        raise Refusal("no_answer", number=len(replies), name=model.name)
    chosen = next(
        index for index, given in enumerate(answers) if given and asked.alike(given, voted.answer)
    )
    confidence = voted.agreement if len(replies) > 1 else None
    result = {"thinking": parsed[chosen].thinking, "answer": voted.answer, "confidence": confidence}
    return {**result, "samples": [one.answer for one in parsed]}, replies[chosen]


async def judged(application: str | None, candidate: Candidate) -> dict[str, Any]:
    """Returns the judge's verdict; where the judge cannot be asked, one that says so."""
    reason = "this server has no judge"
    try:
        if application is not None:
            handle = await asyncio.to_thread(serve.get_app_handle, application)
            asking = handle.score.remote([candidate_json(candidate)])
            reply = await asyncio.wait_for(asking, JUDGE_SECONDS)
            verdict = ScoreReply.model_validate_json(reply).verdicts[0]
            return {**asdict(verdict), "explanation": verdict.explanation}
    except UserError:
        reason = "the judge is set up wrongly; its own log says how"
    except (RayError, TimeoutError, serve.exceptions.RayServeException):
        reason = "the judge does not answer"
    return {"status": "unreachable", "correctness": None, "explanation": None, "reason": reason}
