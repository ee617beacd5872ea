"""What is served is what was trained: the service's log-probs against transformers and peft, and
adapters that are published while requests are in flight."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from rarl.data.images import decode_image, fit_image
from rarl.prompts import PromptsConfig, as_turn, evaluation_prompts
from rarl.schema import Example
from rarl.serving.questions import in_own_words, pose
from rarl.serving.requests import Message
from tests.serving.service import Service, answer_body, messages, write_adapter, write_run

pytestmark = pytest.mark.slow
TOKENS = 24
# nats; float32 rounding is about 3e-6, another adapter's log-probs differ by more than 0.01
CLOSE = 1e-4


def sampled(http: httpx.Client, model: str, example: Example, text: str, seed: int) -> Any:
    """A reply with its token ids and log-probs, of those that were drawn."""
    body = {
        "model": model,
        "messages": messages(example, text),
        "max_tokens": TOKENS,
        "seed": seed,
        "logprobs": True,
        "return_token_ids": True,
    }
    response = http.post("/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def reference_logprobs(
    model: Any, processor: Any, example: Example, prompt: str, completion: list[int]
) -> list[float]:
    """One plain forward pass. Raises nothing; the prompt's own ids are the processor's."""
    pixels = fit_image(decode_image(example.images[0]), processor.image_processor, None)
    inputs = processor(text=[prompt], images=[pixels], return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    tail = torch.tensor([completion])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], tail], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in inputs:
        types = inputs["mm_token_type_ids"]
        inputs["mm_token_type_ids"] = torch.cat(
            [types, torch.zeros_like(tail, dtype=types.dtype)], dim=1
        )
    with torch.no_grad():
        logits = model(**inputs).logits[0, length - 1 : -1].float()
    chosen = torch.log_softmax(logits, dim=-1).gather(1, tail[0][:, None])[:, 0]
    return [float(one) for one in chosen]


def largest_difference(one: list[float], other: list[float]) -> float:
    assert len(one) == len(other) > 3
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def ids_and_logprobs(reply: Any) -> tuple[list[int], list[float]]:
    choice = reply["choices"][0]
    return choice["token_ids"], [one["logprob"] for one in choice["logprobs"]["content"]]


def fresh_base(model_path: str) -> Any:
    return AutoModelForImageTextToText.from_pretrained(model_path, dtype=torch.float32).eval()


def test_logprobs_and_prompts_are_those_of_transformers_and_peft(
    service: Service, examples: list[Example], model_path: str, processor: Any
) -> None:
    models = {"base": fresh_base(model_path)}
    for name in ("first", "second"):
        models[name] = PeftModel.from_pretrained(
            fresh_base(model_path), service.adapters / name / "adapter"
        ).eval()
    plan = evaluation_prompts(PromptsConfig(eval="plain"))
    with service.http() as http:
        for number, example in enumerate(examples[4:8]):
            prompt = plan(processor, example).text
            text = prompt.split("<|vision_end|>")[1].split("<|im_end|>")[0]
            assert as_turn(processor, text, images=("",)) == prompt
            for name, model in models.items():
                reply = sampled(http, name, example, text, seed=number)
                ids, logprobs = ids_and_logprobs(reply)
                pixels = fit_image(decode_image(example.images[0]), processor.image_processor, None)
                expected = processor(text=[prompt], images=[pixels]).input_ids[0]
                assert reply["prompt_token_ids"] == list(expected)
                assert (
                    largest_difference(
                        reference_logprobs(model, processor, example, prompt, ids), logprobs
                    )
                    < CLOSE
                )
                wrong = models["second" if name == "first" else "first"]
                assert (
                    largest_difference(
                        reference_logprobs(wrong, processor, example, prompt, ids), logprobs
                    )
                    > 0.01
                )


def test_a_question_is_asked_in_the_words_of_training(
    examples: list[Example], processor: Any
) -> None:
    """`/v1/answer` is given question and options alone, and must arrive at the prompt that training
    made."""
    plan = evaluation_prompts(PromptsConfig(eval="plain"))
    kinds = set()
    for example in examples:
        body = answer_body(example)
        question = pose(body["question"], body["options"], plan.families["plain"])
        assert as_turn(processor, question.text, images=("",)) == plan(processor, example).text
        kinds.add(example.answer_type)
    assert kinds == {"choice", "closed"}


@pytest.mark.parametrize("reverse", [False, True])
def test_auto_asks_a_bare_chat_question_in_the_words_of_training(
    examples: list[Example], processor: Any, reverse: bool
) -> None:
    """The image comes first, wherever the client has put it."""
    plan = evaluation_prompts(PromptsConfig(eval="structured"))
    bare = replace(examples[0], options=None, answer="", answer_type="open")
    turn = messages(bare)[0]
    turn["content"] = turn["content"][::-1] if reverse else turn["content"]
    asked = in_own_words([Message.model_validate(turn)], plan.families["structured"])
    assert [part.type for part in asked.content] == ["image_url", "text"]
    text = str(asked.content[1].text)
    assert as_turn(processor, text, images=("",)) == plan(processor, bare).text


def test_auto_changes_what_the_engine_reads_and_its_absence_nothing(
    service: Service, examples: list[Example]
) -> None:
    """With the key, the tokens are those of the question written out by the client."""
    plan = evaluation_prompts(PromptsConfig(eval="plain"))
    written_out = pose(examples[0].question, None, plan.families["plain"]).text
    with service.http() as http:

        def prompt_tokens(text: str, **keys: Any) -> int:
            body = {"model": "first", "messages": messages(examples[0], text), "max_tokens": 1}
            response = http.post("/chat/completions", json=body | keys)
            assert response.status_code == 200, response.text
            return int(response.json()["usage"]["prompt_tokens"])

        bare = prompt_tokens(examples[0].question)
        assert prompt_tokens(written_out) > bare
        assert prompt_tokens(examples[0].question, prompt="auto") == prompt_tokens(written_out)


def steadily(
    ask: Callable[[int], Any], threads: int, until: threading.Event, replies: list[Any]
) -> None:
    """That many clients ask one question after the other; `replies` grows."""

    def client(number: int) -> None:
        turn = 0
        while not until.is_set():
            replies.append(ask(number * 1000 + turn))
            turn += 1

    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(client, number) for number in range(threads)]:
            future.result()


def wait_for_versions(replies: list[Any], count: int) -> None:
    deadline = time.monotonic() + 90
    while len({reply["system_fingerprint"] for reply in list(replies)}) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_adapters_published_under_way_never_mix(
    service: Service, examples: list[Example], model_path: str, processor: Any, tmp_path: Path
) -> None:
    """Four versions of one name, and another name that is new, while clients ask without a pause.
    Every reply says which version it is from, and has that version's log-probs to the last
    token."""
    example, text = examples[9], "Which part of the body is this?"
    prompt = as_turn(processor, text, images=("",))
    write_adapter(tmp_path / "copy-10", model_path, 10, strength=0.05)
    live = service.adapters / "live"
    write_adapter(
        write_run(live, model_path, 10, strength=0.05) / "adapter", model_path, 10, strength=0.05
    )
    published, stop = [tmp_path / "copy-10"], threading.Event()
    replies: list[Any] = []

    with service.http() as http, ThreadPoolExecutor(1) as pool:
        asking = pool.submit(
            steadily, lambda seed: sampled(http, "live", example, text, seed), 3, stop, replies
        )
        try:
            for seed in (11, 12, 13):
                wait_for_versions(replies, len(published))
                write_adapter(tmp_path / f"copy-{seed}", model_path, seed, strength=0.05)
                published.append(tmp_path / f"copy-{seed}")
                write_adapter(live / "adapter", model_path, seed, strength=0.05)
            wait_for_versions(replies, len(published))
            write_run(service.adapters / "newcomer", model_path, 14)
            assert sampled(http, "newcomer", example, text, 1)["model"] == "newcomer"
            assert "newcomer" in [one["id"] for one in http.get("/models").json()["data"]]
        finally:
            stop.set()
        asking.result()

    by_version: dict[str, list[Any]] = {}
    for reply in replies:
        by_version.setdefault(reply["system_fingerprint"], []).append(reply)
    assert len(by_version) == 4, sorted(by_version)
    models = [
        PeftModel.from_pretrained(fresh_base(model_path), folder).eval() for folder in published
    ]
    owners = set()
    for version, own in by_version.items():
        fits = [
            all(is_from(model, processor, example, prompt, reply) for reply in own[-6:])
            for model in models
        ]
        assert fits.count(True) == 1, (version, fits)
        owner = fits.index(True)
        owners.add(owner)
        assert all(is_from(models[owner], processor, example, prompt, reply) for reply in own)
    assert owners == {0, 1, 2, 3}


def is_from(model: Any, processor: Any, example: Example, prompt: str, reply: Any) -> bool:
    ids, logprobs = ids_and_logprobs(reply)
    return (
        largest_difference(reference_logprobs(model, processor, example, prompt, ids), logprobs)
        < CLOSE
    )
