"""`POST /v1/answer`: one question about one image → thinking, answer, and how far k samples agree
on it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ray import serve
from ray.exceptions import RayError

from rarl.errors import UserError
from rarl.evaluation.self_consistency import Sampled, vote
from rarl.judge.candidate import Candidate, ScoreReply, candidate_json
from rarl.prompts import question_text
from rarl.replies.grading import same_answer
from rarl.replies.tags import parse_reply
from rarl.replies.words import yes_or_no
from rarl.schema import Example
from rarl.serving.asking import Engines, Model
from rarl.serving.refusals import Refusal
from rarl.serving.requests import AnswerRequest, check_texts

JUDGE_SECONDS = 60.0


@dataclass(frozen=True)
class Question:
    """As the model is asked it. `options` None where training shows none; `closed` is a yes/no
    question."""

    text: str
    options: tuple[str, ...] | None
    closed: bool


def pose(request: AnswerRequest, model: Model) -> Question:
    """In the words that the model was trained, or is measured, with."""
    closed = request.options is not None and {yes_or_no(one) for one in request.options} == {
        "yes",
        "no",
    }
    options = tuple(request.options) if request.options and not closed else None
    example = Example(
        id="",
        image=b"",
        image_id="",
        question=request.question,
        answer="yes" if closed else "",
        answer_type="closed" if closed else "choice" if options else "open",
        options=options,
    )
    return Question(question_text(example, model.family, model.family.wordings[0]), options, closed)


async def answer(engines: Engines, request: AnswerRequest) -> AsyncIterator[dict[str, Any]]:
    """Events: {"type": "delta", "text"} of the first sample as it is written, and last {"type":
    "result", …}. Raises Refusal, also where no sample holds an answer."""
    config = engines.config
    samples = request.samples or config.samples
    if samples > config.limits.replies:
        raise Refusal(400, "invalid_value", f"samples: at most {config.limits.replies}", "samples")
    texts = [request.question, *(request.options or []), request.reference or ""]
    check_texts(texts, config.limits, "question")
    model = engines.model(request.adapter)
    question = pose(request, model)
    url = await engines.image(request.image, model.max_pixels, "image", bare=True)
    replies, fingerprint = [""] * samples, model.version
    usage: dict[str, int] = {}
    async for line in lines_of(
        engines.ask(model, body_of(question, url, samples, request, config.limits))
    ):
        fingerprint = line.get("system_fingerprint") or fingerprint
        usage = line.get("usage") or usage
        for choice in line.get("choices", ()):
            delta = choice["delta"].get("content") or ""
            replies[choice["index"]] += delta
            if choice["index"] == 0 and delta:
                yield {"type": "delta", "text": delta}
    engines.metrics.tokens(model.name, usage.get("completion_tokens", 0))
    result = read_answer(replies, question, model)
    result |= {"adapter": model.name, "version": fingerprint}
    result["tokens"] = {key: usage.get(f"{key}_tokens", 0) for key in ("prompt", "completion")}
    if request.reference is not None:
        result["verdict"] = await judged(config.judge, request, question, result)
    del result["reply"]
    yield {"type": "result", **result}


def body_of(
    question: Question, url: str, samples: int, request: AnswerRequest, limits: Any
) -> dict[str, Any]:
    """One sample is the likeliest reply; several are drawn as in training, so that their agreement
    means something."""
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": question.text},
    ]
    return {
        "messages": [{"role": "user", "content": content}],
        "n": samples,
        "temperature": 1.0 if samples > 1 else 0.0,
        "max_completion_tokens": limits.completion_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"seed": request.seed} if request.seed is not None else {}),
    }


async def lines_of(
    stream: AsyncIterator[dict[str, Any] | list[str]],
) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream, parsed. Raises Refusal for one that is an error."""
    async for item in stream:
        assert isinstance(item, list), "a stream was asked for"
        for event in "".join(item).split("\n\n"):
            text = event.removeprefix("data: ").strip()
            if text and text != "[DONE]":
                line: dict[str, Any] = json.loads(text)
                if "error" in line:
                    raise Refusal(
                        500, "engine_failed", "the engine failed in the middle of its reply"
                    )
                yield line


def read_answer(replies: Sequence[str], question: Question, model: Model) -> dict[str, Any]:
    """The majority's answer with the thinking of the first sample that gave it. Raises Refusal
    without any answer."""
    parsed = [parse_reply(text, model.family.form) for text in replies]
    reference = "yes" if question.closed else ""
    voted = vote(Sampled([one.answer or None for one in parsed], reference, question.options))
    if voted.answer is None:
        raise Refusal(
            422,
            "no_answer",
            f"none of {len(replies)} replies of '{model.name}' holds an <answer>; ask for more samples, ask otherwise, "
            "or choose another adapter",
        )
    chosen = next(
        i
        for i, one in enumerate(parsed)
        if one.answer and agrees(one.answer, voted.answer, reference, question)
    )
    return {
        "thinking": parsed[chosen].thinking,
        "answer": voted.answer,
        "confidence": voted.agreement if len(replies) > 1 else None,
        "samples": [one.answer for one in parsed],
        "reply": replies[chosen],
    }


def agrees(one: str, other: str, reference: str, question: Question) -> bool:
    return same_answer(one, other, reference, question.options)


async def judged(
    application: str | None, request: AnswerRequest, question: Question, result: Any
) -> dict[str, Any]:
    """The judge's verdict on the answer; where it cannot be asked, one that says so."""
    if application is None:
        return unreachable("this server has no judge")
    candidate = Candidate(
        question=request.question,
        options=question.options,
        reference=request.reference or "",
        rationale=None,
        reply=result["reply"],
        thinking=result["thinking"],
        answer=result["answer"],
    )
    try:
        handle = await asyncio.to_thread(serve.get_app_handle, application)
        asking = handle.score.remote([candidate_json(candidate)])
        reply = await asyncio.wait_for(asking, JUDGE_SECONDS)
    except UserError:
        return unreachable("the judge is set up wrongly; its own log says how")
    except (RayError, TimeoutError, serve.exceptions.RayServeException):
        return unreachable("the judge does not answer")
    verdict = ScoreReply.model_validate_json(reply).verdicts[0]
    return {**asdict(verdict), "explanation": verdict.explanation}


def unreachable(reason: str) -> dict[str, Any]:
    return {"status": "unreachable", "correctness": None, "explanation": None, "reason": reason}
